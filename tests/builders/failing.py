"""A real MLflow server that can be killed and started again, and a line to it that fails in the ways lines do."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cluster.tracking_store import QUIET, SQLITE
from cluster.ui import _command
from tests.builders.local_cluster import free_port

HELD_S = 25.0  # below the patience of who waits for the answer


class Server:
    """`mlflow server` on an SQLite file, always on the same port."""

    def __init__(self, folder: Path) -> None:
        self.file, self.port = folder / "mlflow.db", free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.file.parent / "server.log").open("ab")
        self.process = subprocess.Popen(
            _command(f"{SQLITE}{self.file}", self.file, "127.0.0.1", self.port),
            env={**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        until(self._healthy, 180)

    def kill(self) -> None:
        """As when its machine loses power."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return True
        except OSError:
            return False


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server. `state` says how:

    whole   as they are
    broken  answers 500, and the server sees nothing
    lost    the server does what is asked, and the answer is 500
    held    the server does what is asked, and the answer waits until `state` changes
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.state = target, "whole"
        self.counts = dict.fromkeys(("whole", "broken", "lost", "held", "refused", "held too long"), 0)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def set(self, state: str) -> None:
        """Changes the state; counts in it start at none."""
        self.counts[state] = 0
        self.state = state


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _handle(self) -> None:
        proxy, state = self.server, self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, answer = 500, [("Content-Type", "text/plain")], b"out of order"
        if state != "broken":
            line = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
            try:
                line.request(self.command, self.path, body, dict(self.headers))
                found = line.getresponse()
                if state != "lost":
                    status, headers, answer = found.status, found.getheaders(), found.read()
            except OSError:
                proxy.counts["refused"] += 1
                self.close_connection = True
                return
            finally:
                line.close()
        proxy.counts[state] += 1
        if state == "held":
            deadline = time.monotonic() + HELD_S
            while proxy.state == "held" and time.monotonic() < deadline:
                time.sleep(0.02)
            proxy.counts["held too long"] += proxy.state == "held"
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


def until(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
