"""The tracker on a real MLflow store, outages included, and how runs are opened."""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from cluster.image_log import image_steps
from cluster.spool import Spool
from cluster.tracking import MLflowTracker, check_tracking, log_source, open_run
from cluster.tracking_store import SQLITE, connect, patience, store_uri
from condense.errors import TrackingError
from condense.workers.tracking import Tracker
from tests.builders.failing import until
from tests.builders.mlflow_runs import history, new_run
from tests.builders.tracking import TrackerContract, picture

pytestmark = pytest.mark.mlflow

UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing listens


class TestMLflowTracker(TrackerContract):
    @pytest.fixture(autouse=True)
    def store(self, tracking_uri: str) -> None:
        self.uri = tracking_uri

    def make(self, tmp_path: Path) -> Tracker:
        return MLflowTracker(self.uri, new_run(self.uri), tmp_path / "spool.jsonl")

    def rows(self, tracker: Tracker, name: str) -> list[tuple[int, float]]:
        assert isinstance(tracker, MLflowTracker)
        assert tracker.flush() == 0
        return history(self.uri, tracker.run_id, name)

    def picture_steps(self, tracker: Tracker, key: str) -> list[int]:
        assert isinstance(tracker, MLflowTracker)
        assert tracker.flush() == 0
        paths = [file.path for file in connect(self.uri).list_artifacts(tracker.run_id, "images")]
        return sorted(step for found, step in image_steps(paths) if found == key)

    def test_a_reopened_run_ignores_the_steps_that_it_already_has(self, tmp_path: Path) -> None:
        first = self.make(tmp_path)
        assert isinstance(first, MLflowTracker)
        for step in range(5):
            first.metrics({"loss": float(step)}, step)
        first.images("synthetic", picture(), 4)
        first.close("KILLED")
        again = MLflowTracker(self.uri, first.run_id)
        for step in range(3, 7):
            again.metrics({"loss": 10.0 + step}, step)
            again.images("synthetic", picture(), step)
        again.close()
        assert self.rows(again, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 15.0), (6, 16.0)]
        assert self.picture_steps(again, "synthetic") == [4, 5, 6]
        assert connect(self.uri).get_run(first.run_id).info.status == "FINISHED"

    def test_what_a_killed_process_left_in_its_spool_is_sent_by_the_next(self, tmp_path: Path) -> None:
        run_id = new_run(self.uri)
        killed = MLflowTracker(self.uri, run_id, tmp_path / "spool.jsonl", interval_s=math.inf)
        for step in range(3):
            killed.metrics({"loss": float(step)}, step)
        assert killed.waiting == 3
        with (tmp_path / "spool.jsonl").open("a") as stream:
            stream.write('{"kind": "metrics", "st')
        del killed
        MLflowTracker(self.uri, run_id, tmp_path / "spool.jsonl").close()
        assert history(self.uri, run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
        assert not (tmp_path / "spool.jsonl").exists()

    def test_a_store_that_comes_later_gets_everything_once_and_in_order(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run_id = new_run(self.uri)
        tracker = MLflowTracker(UNREACHABLE, run_id, tmp_path / "spool.jsonl")
        tracker.params({"images_per_class": 1})
        for step in range(20):
            tracker.metrics({"loss": float(step), "bits": 1.0}, step)
        tracker.images("synthetic", picture(), 19)
        tracker.metrics({"loss": 20.0}, 20)
        copy: MLflowTracker = pickle.loads(pickle.dumps(tracker))
        assert "cannot be reached" in caplog.text
        assert copy.waiting == tracker.waiting == 23
        copy.tracking_uri = self.uri
        copy.close()
        assert history(self.uri, run_id, "loss") == [(step, float(step)) for step in range(21)]
        assert len(history(self.uri, run_id, "bits")) == 20
        assert self.picture_steps(copy, "synthetic") == [19]
        assert connect(self.uri).get_run(run_id).data.params["images_per_class"] == "1"
        assert not (tmp_path / "spool.jsonl").exists()

    def test_what_a_worker_could_not_send_is_sent_by_the_driver_that_made_the_tracker(self, tmp_path: Path) -> None:
        driver = self.make(tmp_path)
        assert isinstance(driver, MLflowTracker)
        driver.metrics({"loss": 0.0}, 0)
        worker: MLflowTracker = pickle.loads(pickle.dumps(driver))
        worker.metrics({"loss": 1.0}, 1)
        worker.flush()
        worker.rest()
        worker.interval_s = math.inf
        worker.metrics({"loss": 2.0}, 2)
        del worker
        driver.close()
        assert history(self.uri, driver.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
        assert not (tmp_path / "spool.jsonl").exists()

    def test_an_end_that_waited_until_the_run_was_resumed_does_not_end_it(self, tmp_path: Path) -> None:
        run_id = new_run(self.uri)
        spool = Spool(tmp_path / "spool.jsonl")
        spool.append({"kind": "metrics", "step": 0, "values": {"loss": 0.0}, "time": 1})
        spool.append({"kind": "close", "status": "FAILED", "time": 2})
        resumed = MLflowTracker(self.uri, run_id, tmp_path / "spool.jsonl")
        resumed.metrics({"loss": 1.0}, 1)
        assert self.rows(resumed, "loss") == [(0, 0.0), (1, 1.0)]
        assert connect(self.uri).get_run(run_id).info.status == "RUNNING"

    def test_a_tracker_without_a_file_takes_what_waits_along_when_pickled(self, tmp_path: Path) -> None:
        tracker = MLflowTracker(UNREACHABLE, new_run(self.uri))
        tracker.metrics({"loss": 0.0}, 0)
        copy: MLflowTracker = pickle.loads(pickle.dumps(tracker))
        copy.tracking_uri = self.uri
        copy.close()
        assert history(self.uri, copy.run_id, "loss") == [(0, 0.0)]

    def test_a_run_that_was_deleted_is_an_error_and_its_records_stay_in_the_spool(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        assert isinstance(tracker, MLflowTracker)
        connect(self.uri).delete_run(tracker.run_id)

        def go_on() -> None:
            for step in range(1000):
                tracker.metrics({"loss": 1.0}, step)
                time.sleep(0.02)

        with pytest.raises(TrackingError, match="refuses run"):
            go_on()
        assert Spool(tmp_path / "spool.jsonl").read()[0]["step"] == 0

    def test_more_metrics_than_a_request_takes_arrive(self, tmp_path: Path) -> None:
        tracker = MLflowTracker(self.uri, new_run(self.uri), interval_s=math.inf)
        for step in range(4):
            tracker.metrics({f"class/{c}": float(c) for c in range(600)}, step)
        tracker.close()
        assert len(history(self.uri, tracker.run_id, "class/599")) == 4

    def test_pictures_show_the_pixels_that_were_logged(self, tmp_path: Path) -> None:
        from PIL import Image

        tracker = self.make(tmp_path)
        assert isinstance(tracker, MLflowTracker)
        grid = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        tracker.images("synthetic/set", grid, 3)
        tracker.close()
        client = connect(self.uri)
        paths = [file.path for file in client.list_artifacts(tracker.run_id, "images")]
        assert image_steps(paths) == [("synthetic~set", 3)]
        png = next(path for path in paths if path.endswith(".png"))
        stored = Image.open(client.download_artifacts(tracker.run_id, png, str(tmp_path)))
        assert bytes(stored.tobytes()) == bytes(grid.permute(1, 2, 0).contiguous().numpy().tobytes())


def test_an_unfinished_run_of_the_same_identity_is_reopened_and_a_finished_one_is_not(tracking_uri: str) -> None:
    identity = uuid.uuid4().hex
    first = new_run(tracking_uri, identity, seed=0)
    connect(tracking_uri).set_terminated(first, "FAILED")
    assert new_run(tracking_uri, identity, seed=0) == first
    assert connect(tracking_uri).get_run(first).info.status == "RUNNING"
    connect(tracking_uri).set_terminated(first, "FINISHED")
    assert new_run(tracking_uri, identity, seed=0) != first
    assert new_run(tracking_uri, "another " + identity) != first


def test_a_run_carries_dotted_params_versions_and_revision(tracking_uri: str) -> None:
    run_id = open_run(
        tracking_uri,
        experiment="tests",
        name="digits",
        identity=uuid.uuid4().hex,
        params={"data": {"image_size": 32, "test_source": None}, "source": "digits", "long": "x" * 9000},
        tags={"purpose": "test"},
        git_revision="abc123",
        versions={"torch": "2.15.0"},
    )
    run = connect(tracking_uri).get_run(run_id)
    assert {k: v for k, v in run.data.params.items() if k != "long"} == {
        "data.image_size": "32",
        "data.test_source": "null",
        "source": "digits",
    }
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["condense.version.torch"] == "2.15.0"
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.tags["purpose"] == "test"
    assert run.info.run_name == "digits"


def test_a_reopened_run_keeps_its_first_params_and_takes_new_ones(
    tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    identity = uuid.uuid4().hex
    new_run(tracking_uri, identity, workers=2)
    run_id = new_run(tracking_uri, identity, workers=1, seed=3)
    assert connect(tracking_uri).get_run(run_id).data.params == {"workers": "2", "seed": "3"}
    assert "workers" in caplog.text


def test_the_source_is_a_dataset_input_of_the_run_once(tracking_uri: str) -> None:
    run_id = new_run(tracking_uri)
    digest = "d" * 64
    for _ in range(2):
        log_source(tracking_uri, run_id, name="digits", digest=digest, description={"uri": "digits"}, profile={"n": 9})
    (found,) = connect(tracking_uri).get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", digest[:36])
    assert json.loads(found.dataset.source) == {"uri": "digits", "digest": digest}


def test_artifacts_of_an_sqlite_store_lie_beside_its_file(tracking_uri: str, tmp_path: Path) -> None:
    run_id = new_run(tracking_uri)
    (tmp_path / "note.txt").write_text("here")
    connect(tracking_uri).log_artifact(run_id, str(tmp_path / "note.txt"))
    beside = Path(tracking_uri.removeprefix(SQLITE)).parent / "mlartifacts" / run_id / "artifacts" / "note.txt"
    assert beside.read_text() == "here"


def test_a_relative_store_means_the_same_file_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["postgresql://host/db", "mlruns", "", "sqlite://", "sqlite:///:memory:", "http://"])
def test_a_uri_that_is_no_store_is_refused_by_name(uri: str) -> None:
    with pytest.raises(TrackingError, match=f"tracking_uri '{uri}'"):
        check_tracking(uri)


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.tracking_store.CHECK_S", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TrackingError, match=uri):
            check_tracking(uri)


@pytest.mark.parametrize("status", [200, 404])
def test_a_server_that_answers_with_a_page_is_asked_for_its_prefix(status: int) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<!doctype html>\n<html><body>Welcome</body></html>")

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(TrackingError) as caught:
            check_tracking(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert "a web page answers, not MLflow's API" in caught.value.problem
    assert "<" not in str(caught.value).replace("->", "")
    assert "http://HOST:PORT/PREFIX" in caught.value.remedy


FIRST_RUN = """
import sys, time
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from cluster.tracking_store import check_tracking
_, uri, ready, go = sys.argv
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.001)
check_tracking(uri)
"""


def test_first_runs_at_the_same_moment_share_a_new_store(tmp_path: Path) -> None:
    uri, go, ready = f"{SQLITE}{tmp_path}/mlflow.db", tmp_path / "go", [tmp_path / f"ready{k}" for k in range(2)]
    runs = [
        subprocess.Popen([sys.executable, "-c", FIRST_RUN, uri, str(mine), str(go)], stderr=subprocess.PIPE, text=True)
        for mine in ready
    ]
    until(lambda: all(mine.exists() for mine in ready) or any(run.poll() is not None for run in runs))
    go.touch()
    ended = [(run.communicate()[1], run.returncode) for run in runs]
    assert [code for _, code in ended] == [0, 0], ended
    check_tracking(uri)


def test_a_user_without_an_entry_opens_a_run_as_a_number(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    run = connect(tracking_uri).get_run(new_run(tracking_uri))
    assert run.data.tags["mlflow.user"] == "uid 54321"


def test_a_password_in_a_uri_is_not_repeated_in_the_error() -> None:
    with pytest.raises(TrackingError) as caught:
        check_tracking(UNREACHABLE.replace("//", "//ann:secret@"))
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_and_a_folder_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and longer than a header of one hundred bytes " * 3)
    for path in (tmp_path / "text", tmp_path / "text" / "mlflow.db", Path("/proc/none/mlflow.db")):
        with pytest.raises(TrackingError, match="cannot be written"):
            check_tracking(f"sqlite:///{path}")


def test_a_locked_database_is_refused(tmp_path: Path, tracking_uri: str) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="locked"):
            check_tracking(f"sqlite:///{file}")
        database.rollback()


def test_patience_is_put_back() -> None:
    before = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    with patience(retries=0, timeout_s=1):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") == before


def test_a_damaged_spool_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "spool.jsonl").write_text('{"kind": "params", "values": {}}\nnot json\n')
    with pytest.raises(TrackingError, match="line 2"):
        Spool(tmp_path / "spool.jsonl")


def test_importing_the_tracker_does_not_load_mlflow() -> None:
    program = "import sys, cluster.tracking, cluster.registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_client_has_no_telemetry(tracking_uri: str) -> None:
    assert isinstance(connect(tracking_uri), MlflowClient)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
