"""Serves MLflow's own UI on an SQLite store, on this machine only, without telemetry: `condense ui`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from cluster.tracking_store import ARTIFACTS, QUIET, check_writable, redacted, sqlite_file, store_uri
from condense.errors import TrackingError

LOOPBACK = ("127.0.0.1", "localhost")
START_S = 180.0  # a busy two-core machine has taken ninety seconds
STOP_S = 10.0


def serve(
    uri: str,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    open_browser: bool = False,
    announce: Callable[[str], object] = print,
) -> None:
    """Shows a store in MLflow's UI until Ctrl-C or SIGTERM, then ends every process that it started.

    Args:
        uri: an SQLite file; for a server there is nothing to start, and only its address is announced.
        host: loopback; the server asks for no password.
        port: 0 takes a free one.
        open_browser: open the address when the server answers.
        announce: called with the address when the server answers.

    Raises:
        TrackingError: no store there, a host that others can reach, a port in use, a server that does not start.
    """
    uri = store_uri(uri)
    file = sqlite_file(uri)
    if file is None:
        announce(redacted(uri))
        if open_browser:
            webbrowser.open(uri)
        return
    if host not in LOOPBACK:
        raise TrackingError(
            f"host {host!r} lets others in, and this server asks for no password",
            f"reach it through ssh -L {port}:127.0.0.1:{port}, or run an MLflow server with basic-auth",
        )
    if not file.is_file():
        raise TrackingError(f"there is no MLflow store {file}", "condense run makes one; or give its tracking_uri")
    check_writable(file, uri)
    port = _free_port(host, port)
    url = f"http://{host}:{port}"
    with tempfile.TemporaryFile() as log, _terminated_as_interrupt():
        # Its own session, so that one signal to its group ends the server and its workers.
        server = subprocess.Popen(  # noqa: S603 (our own command, no shell)
            _command(uri, file, host, port),
            env={**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(server, url, log)
            announce(url)
            if open_browser:
                webbrowser.open(url)
            server.wait()
            raise TrackingError(f"the MLflow server ended by itself ({server.returncode}): {_tail(log)}")
        except KeyboardInterrupt:
            return
        finally:
            _end(server)


def _command(uri: str, file: Path, host: str, port: int) -> list[str]:
    # Any port of this machine, so that the page also opens through a tunnel from another port.
    allowed = ",".join(pattern for name in LOOPBACK for pattern in (name, f"{name}:*"))
    options = {
        "--backend-store-uri": uri,
        "--artifacts-destination": str(file.parent / ARTIFACTS),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
        "--allowed-hosts": allowed,
    }
    return [sys.executable, "-m", "mlflow", "server", *(part for option in options.items() for part in option)]


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} on {host} cannot be used: {error.strerror}", "choose another port"
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"the MLflow server did not start ({server.returncode}): {_tail(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310 (http by construction)
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
    raise TrackingError(f"the MLflow server at {url} did not answer in {START_S:.0f} s: {_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return " | ".join(lines[-5:]) or "it said nothing"


def _end(server: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            break
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM ends the program as Ctrl-C does (Python allows this in the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
