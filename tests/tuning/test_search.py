"""The search for real: Ray, Optuna, MLflow; killed and resumed; trials that fail, die or are hopeless."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cluster import registry
from cluster.tracking_store import connect
from condense.synthetic.dataset import read_dataset
from tests.builders.processes import descendants
from tests.builders.searches import TINY
from tests.conftest import condense_in
from tuning.score import Point, front
from tuning.space import SearchConfig

pytestmark = [pytest.mark.ray, pytest.mark.mlflow]

SPACE = {"bits_weight": {"log_uniform": [1, 500]}, "images_per_class": {"choice": [1, 2]}}


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-c", "from condense.cli.app import main; main()", "tune", str(folder / "s.yaml"), *options]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "searches" / "killed" / "trials.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def checkpoints(folder: Path, identity: str) -> list[Path]:
    return sorted((folder / "runs" / f"condense-{identity}").glob("step-*"))


def at_work(folder: Path) -> list[dict[str, Any]]:
    """The suggestions of trials that are not over and have a checkpoint."""
    found = events(folder)
    over = {event["trial"] for event in found if event["event"] in ("finished", "stopped", "failed")}
    started = [event for event in found if event["event"] == "suggested" and event["trial"] not in over]
    return [event for event in started if checkpoints(folder, event["identity"])]


@pytest.mark.slow
def test_a_killed_search_keeps_what_is_finished_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    base = {**TINY, "outer_steps": 30, "evaluation": {**TINY["evaluation"], "every": 10}}
    search = {"name": "killed", "base": base, "space": SPACE, "trials": 5, "concurrent": 2, "early_stopping": None}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(search))
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=log, stderr=log)
    deadline = time.monotonic() + 900
    while len(at_work(tmp_path)) < 2 or not any(event["event"] == "finished" for event in events(tmp_path)):
        assert driver.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    left = descendants(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in left):
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    before = events(tmp_path)
    finished = {event["trial"]: event["result"] for event in before if event["event"] == "finished"}
    unfinished = at_work(tmp_path)
    assert finished
    assert len(unfinished) >= 2

    changed = condense_in(tmp_path, "tune", "s.yaml", "--resume", "seed=1")
    assert changed.code == 2
    assert "began with seed=0, now it is 1" in " ".join(changed.err.split())
    assert events(tmp_path) == before

    # Damaged checkpoints show that trials go on from theirs, and that one which fails does not end the search.
    damaged = checkpoints(tmp_path, unfinished[0]["identity"])
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-5])
    resumed = subprocess.run(command(tmp_path, "--resume"), cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert resumed.returncode == 0, resumed.stderr
    after = events(tmp_path)
    assert after[: len(before)] == before
    ended = [event for event in after if event["event"] in ("finished", "stopped", "failed")]
    assert Counter(event["trial"] for event in ended) == Counter(range(5))
    (failed,) = [event for event in ended if event["event"] == "failed"]
    assert failed["trial"] == unfinished[0]["trial"]
    assert damaged[-1].name in failed["reason"]
    results = {event["trial"]: event["result"] for event in ended if event["event"] == "finished"}
    assert len(results) == 4
    assert {trial: results[trial] for trial in finished} == finished

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    versions = registry.list_datasets(uri)
    assert sorted(version.version for version in versions) == [1, 2, 3, 4]
    assert {version.run_id for version in versions} == {result["run_id"] for result in results.values()}
    client = connect(uri)
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert Counter(run.info.status for run in nested) == {"FINISHED": 4, "FAILED": 1}
    assert parent.info.status == "FINISHED"
    for run in nested:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/accuracy")]
        assert steps == sorted(set(steps))

    # The front is tested, marked and carried by the parent; nothing else was tested.
    points = [Point(result["accuracy"], result["bits"]) for result in results.values()]
    members = {list(results.values())[index]["version"] for index in front(points)}
    assert {version.version for version in versions if version.tags.get("pareto") == "true"} == members
    assert {version.version for version in versions if "test_accuracy" in version.tags} == members
    (best,) = [version for version in versions if "best" in version.aliases]
    assert best.version in members
    fetched = read_dataset(registry.download(uri, best.reference, tmp_path / "best") / "data.parquet")
    stated = f"{fetched.provenance['evaluation']['accuracy_mean']:.4f}"
    assert stated == best.tags["test_accuracy"]
    kept = client.download_artifacts(parent.info.run_id, "search", str(tmp_path))
    names = {path.name for path in Path(kept).iterdir()}
    assert names == {"front.html", "front.png", "front.parquet", "trials.parquet", "importance.json"}
    table = pq.read_table(Path(kept) / "front.parquet").to_pydict()
    assert set(table["version"]) == {f"killed/{number}" for number in members}
    assert f"killed/{best.version}" in resumed.stdout


def config(folder: Path, **changes: Any) -> SearchConfig:
    places = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "output": str(folder / "sets")}
    base = {**TINY, **places, "storage": str(folder / "runs")}
    values = {"name": "fake", "base": base, "space": SPACE, "trials": 6, "concurrent": 1, "storage": folder}
    return SearchConfig.model_validate({**values, **changes})


def test_trials_that_fail_die_or_are_hopeless_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    from tuning.search import run
    from tuning.trial import Report

    def objective(number: int, values: dict[str, Any], report: Report) -> dict[str, Any]:
        report(1, Point(0.0, 1e9))  # in the grace period
        if number == 1:
            raise ValueError("no such luck")
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        accuracy = 50.0 if number == 3 else 80.0 + number
        report(4, Point(accuracy, 1e5))
        assert number != 3, "a trial that was stopped went on"
        return {"accuracy": accuracy, "bits": 1e5 + number, "seconds": 0.0}

    seen: list[list[str]] = []
    search = config(tmp_path)
    outcome = run(
        search,
        changed=lambda journal: seen.append([trial.status for trial in journal.trials.values()]),
        objective=lambda parent: objective,
    )
    assert seen[-1] == ["finished", "failed", "failed", "stopped", "finished", "finished"]
    assert [member.number for member in outcome.members] == [0, 4, 5]
    assert outcome.best is outcome.members[2]
    trials = pq.read_table(
        Path(connect(search.base["tracking_uri"]).download_artifacts(outcome.parent, "search", str(tmp_path)))
        / "trials.parquet"
    ).to_pydict()
    assert "no such luck" in trials["reason"][1]
    assert "died" in trials["reason"][2].lower()
    assert trials["reason"][3] == "dominated by trial 0 at outer step 4 of 6"
    again = run(search, resume=True, objective=lambda parent: objective)
    assert again.parent == outcome.parent
    assert [member.number for member in again.members] == [0, 4, 5]
