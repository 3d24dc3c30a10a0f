"""A run whose MLflow server is slow, answers 500 and is killed: nothing waits, is lost or arrives twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cluster.run
import cluster.tracking
from cluster.image_log import image_steps
from cluster.registry import show
from cluster.tracking_store import check_tracking, connect
from condense.condensation.config import RunConfig
from condense.settings import resolve
from condense.workers.context import Progress
from tests.builders.failing import Proxy, Server, until
from tests.builders.runs import TINY

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]

STEPS = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.shutdown()


def config(folder: Path, uri: str, name: str, steps: int = STEPS) -> RunConfig:
    places = [f"output={folder}/condensed", f"storage={folder}/runs", f"tracking_uri={uri}", f"name={name}"]
    length = [f"outer_steps={steps}", "evaluation.every=1", "evaluation.controls=false"]
    return resolve(RunConfig, None, [*TINY, *places, *length, "workers=0"])


def logged(uri: str, run_id: str) -> dict[str, list[tuple[int, float | None]]]:
    """Every metric's history as it was logged, in order; of what a clock says only the steps."""
    client = connect(uri)
    found = {}
    for name in client.get_run(run_id).data.metrics:
        points = client.get_metric_history(run_id, name)
        found[name] = [(point.step, None if name.startswith("seconds/") else point.value) for point in points]
    return found


def pictures(uri: str, run_id: str) -> list[str]:
    return [file.path for file in connect(uri).list_artifacts(run_id, "images")]


def test_an_outage_of_every_kind_delays_nothing_loses_nothing_and_repeats_nothing(
    server: Server, proxy: Proxy, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.tracking, "RETRY_S", (0.2, 1.0))
    undisturbed = cluster.run.run(config(tmp_path / "calm", tracking_uri, "calm"), lambda at: None)

    folder = tmp_path / "rough"

    def all_sent() -> bool:
        return not list(folder.glob("runs/*.spool.jsonl"))

    def heal() -> None:
        proxy.set("whole")
        until(all_sent)

    def restart() -> None:
        server.start()
        until(all_sent)

    def break_until_registration_has_failed() -> None:
        proxy.set("broken")

        def mend() -> None:
            until(lambda: list(folder.glob("condensed/*/README.md")))
            before = proxy.counts["broken"]
            until(lambda: proxy.counts["broken"] > before)
            proxy.set("whole")

        threading.Thread(target=mend, daemon=True).start()

    # What a step logs is sent after the next one's event. From step 4 to 8 nothing is answered, and the run goes on.
    events: dict[int, Callable[[], object]] = {
        3: lambda: proxy.set("held"),
        4: lambda: until(lambda: proxy.counts["held"]),
        8: heal,
        9: lambda: proxy.set("lost"),
        10: lambda: until(lambda: proxy.counts["lost"]),
        11: lambda: proxy.set("broken"),
        12: lambda: until(lambda: proxy.counts["broken"]),
        13: heal,
        15: server.kill,
        16: lambda: until(lambda: proxy.counts["refused"]),
        18: restart,
        STEPS: break_until_registration_has_failed,
    }

    def disturb(at: Progress) -> None:
        if at.stage == "condensing":
            events.pop(at.done, lambda: None)()

    finished = cluster.run.run(config(folder, proxy.url, "rough"), disturb)
    assert not events
    assert proxy.counts["held too long"] == 0
    assert all_sent()
    assert finished.dataset.provenance["content_digest"] == undisturbed.dataset.provenance["content_digest"]
    assert finished.run_id is not None
    assert undisturbed.run_id is not None
    calm, rough = logged(tracking_uri, undisturbed.run_id), logged(proxy.url, finished.run_id)
    assert rough == calm
    assert [step for step, _ in rough["validation/accuracy"]] == list(range(1, STEPS + 1))
    shown = pictures(proxy.url, finished.run_id)
    assert sorted(image_steps(shown)) == sorted(image_steps(pictures(tracking_uri, undisturbed.run_id)))
    assert len(shown) == 2 * STEPS  # a picture and its thumbnail
    assert connect(proxy.url).get_run(finished.run_id).info.status == "FINISHED"
    assert show(proxy.url, "rough").run_id == finished.run_id


def test_a_server_that_goes_away_between_registration_and_the_end_leaves_one_command(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster.tracking, "CLOSE_PATIENCE_S", 0.0)
    short = config(tmp_path, proxy.url, "unclosed", steps=2)
    finished = cluster.run.run(short, lambda at: None, keep=lambda finished: proxy.set("broken"))
    assert finished.run_id is not None
    assert f"condense datasets register {finished.folder} --tracking-uri {proxy.url}" in caplog.text
    proxy.set("whole")
    assert connect(proxy.url).get_run(finished.run_id).info.status == "RUNNING"
    for _ in range(2):
        version = cluster.run.register_folder(proxy.url, finished.folder)
        assert (version.run_id, version.version) == (finished.run_id, 1)
        assert connect(proxy.url).get_run(finished.run_id).info.status == "FINISHED"
    assert not list(tmp_path.rglob("*.spool.jsonl"))


def test_one_connection_that_fails_is_no_absent_server(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()

    def shut_the_first(request: object, address: object) -> bool:
        asked.append(len(asked) > 0)
        return asked[-1]

    monkeypatch.setattr(proxy, "verify_request", shut_the_first)
    check_tracking(proxy.url)
    assert asked[:2] == [False, True]
