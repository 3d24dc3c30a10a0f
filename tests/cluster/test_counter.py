"""The services of the cluster know nothing of condensation: a counter runs on Ray Train workers and logs to MLflow."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from condense.workers.context import Progress
from tests.builders.counter import CounterConfig, count
from tests.builders.processes import descendants

pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    from cluster.ray_connection import connected

    with connected():
        yield


@pytest.mark.parametrize(("workers", "kills"), [(1, 0), (2, 1)])
def test_a_counter_logs_every_step_once_and_ends_with_its_sum_also_where_a_worker_is_killed(
    workers: int, kills: int, tmp_path: Path
) -> None:
    from cluster.mlflow_runs import open_run
    from cluster.ray_workers import on_workers
    from cluster.tracking import MLflowTracker
    from cluster.tracking_store import connect

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = open_run(uri, experiment="counters", name="counter", identity="counter", params={"total": 8})
    tracker = MLflowTracker(uri, run_id, spool=tmp_path / "spool.jsonl")
    config = CounterConfig(str(tmp_path / "runs"), workers=workers, step_s=0.3 * kills)
    killed, seen = list[int](), list[int]()

    def kill_one(at: Progress) -> None:
        seen.append(at.done)
        if at.done >= 3 and len(killed) < kills:
            mine = [pid for pid in descendants() if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text()]
            assert len(mine) == workers
            killed.append(mine[-1])
            os.kill(mine[-1], signal.SIGKILL)

    found = on_workers(partial(count, config), "counter", config, 8, tracker, kill_one)
    tracker.close("FINISHED")
    assert len(killed) == kills
    assert (found["sum"], found["done"], found["workers"]) == (36.0, 8, workers)
    assert found["began"] >= 2 * kills, "it went on from a checkpoint"
    assert seen[-1] == 8
    history = connect(uri).get_metric_history(run_id, "sum")
    assert [(row.step, row.value) for row in history] == [(step, step * (step + 1) / 2) for step in range(1, 9)]
    assert connect(uri).get_run(run_id).info.status == "FINISHED"
