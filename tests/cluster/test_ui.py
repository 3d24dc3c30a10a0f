"""The UI's server for real, what is read through it, and the tracker when the line to it is cut."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.image_log import image_steps
from cluster.registry import download, register, show
from cluster.tracking import MLflowTracker, check_tracking
from cluster.tracking_store import connect
from cluster.ui import serve
from condense.errors import TrackingError
from tests.builders.mlflow_runs import history, new_run
from tests.builders.processes import descendants
from tests.builders.tracking import picture

pytestmark = pytest.mark.mlflow

PROGRAM = """
import sys
from cluster.ui import serve
serve(sys.argv[1], port=0, announce=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def server_url(tracking_uri: str) -> Iterator[str]:
    """`condense ui` in a process of its own; ended by SIGTERM, which must end all that it started."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, tracking_uri], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        family = descendants(process.pid)
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert family
    assert not [child for child in family if Path(f"/proc/{child}").exists()]


class Line:
    """A TCP line to the server that can be cut, or lose every answer after the request has gone through."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self.target = (host, int(port))
        self.state = "whole"
        self.open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, state: str) -> None:
        self.state = state
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.state == "cut":
                    near.close()
                    continue
                far = socket.create_connection(self.target)
                self.open += [near, far]
                threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._copy, args=(far, near, self.state == "deaf"), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, lose: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if lose:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(server_url: str) -> Iterator[Line]:
    line = Line(server_url)
    yield line
    line.set("cut")
    line.listener.close()


@pytest.mark.slow
def test_a_registered_dataset_is_read_through_the_rest_interface(
    server_url: str, tracking_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "data.parquet").write_bytes(b"PAR1 pixels")
    tags = {"content_digest": "through-rest", "ipc": "1"}
    run_id = new_run(tracking_uri)
    register(tracking_uri, run_id, "through-rest", tmp_path / "made", tags)
    query = f"{server_url}/api/2.0/mlflow/model-versions/get?name=through-rest&version=1"
    with urllib.request.urlopen(query) as answer:
        found = json.load(answer)["model_version"]
    assert found["status"] == "READY"
    assert {tag["key"]: tag["value"] for tag in found["tags"]}["ipc"] == "1"
    with urllib.request.urlopen(f"{server_url}/get-artifact?path=dataset/data.parquet&run_id={run_id}") as answer:
        assert answer.read() == b"PAR1 pixels"
    assert show(server_url, "through-rest").tags["ipc"] == "1"
    out = download(server_url, "through-rest", tmp_path / "out")
    assert (out / "data.parquet").read_bytes() == b"PAR1 pixels"


@pytest.mark.slow
def test_a_run_that_is_made_through_the_server_keeps_its_artifacts_there(server_url: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "data.parquet").write_bytes(b"PAR1 other pixels")
    check_tracking(server_url)
    made = register(server_url, new_run(server_url), "by-server", tmp_path / "made", {"content_digest": "by-server"})
    out = download(server_url, made.reference, tmp_path / "out")
    assert (out / "data.parquet").read_bytes() == b"PAR1 other pixels"


@pytest.mark.slow
def test_an_outage_loses_nothing_and_repeats_nothing(
    line: Line, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    run_id = new_run(tracking_uri)
    tracker = MLflowTracker(line.url, run_id, tmp_path / "spool.jsonl", interval_s=math.inf)
    states = ("whole", "cut", "deaf", "whole", "deaf", "cut", "whole")
    for step, state in enumerate(states):
        line.set(state)
        tracker.metrics({"loss": float(step)}, step)
        tracker.images("synthetic", picture(step), step)
        assert (tracker.flush(at_once=True) == 0) == (state == "whole")
        assert (tmp_path / "spool.jsonl").exists() == (state != "whole")
    tracker.close()
    assert history(tracking_uri, run_id, "loss") == [(step, float(step)) for step in range(len(states))]
    paths = [file.path for file in connect(tracking_uri).list_artifacts(run_id, "images")]
    assert sorted(image_steps(paths)) == [("synthetic", step) for step in range(len(states))]
    assert connect(tracking_uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_another_host_name_is_refused_by_the_server(server_url: str) -> None:
    request = urllib.request.Request(f"{server_url}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", "attacker.example")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403


def test_a_server_is_only_announced() -> None:
    announced: list[str] = []
    serve("http://tracking.example:5000/", announce=announced.append)
    assert announced == ["http://tracking.example:5000"]


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(TrackingError, match="password before its @") as refused:
        serve("http://ann:secret@tracking.example:5000/")
    assert "secret" not in str(refused.value)


def test_a_port_in_use_is_named(tracking_uri: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"port {port} on 127.0.0.1"):
            serve(tracking_uri, port=port)


def test_a_host_that_others_can_reach_is_refused(tracking_uri: str) -> None:
    with pytest.raises(TrackingError, match=r"0\.0\.0\.0.*no password"):
        serve(tracking_uri, host="0.0.0.0")


def test_a_store_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="there is no MLflow store"):
        serve(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []
