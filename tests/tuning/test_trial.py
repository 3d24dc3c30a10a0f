"""What a trial reports to the search while it runs."""

from pathlib import Path
from typing import Any

import pytest

from condense.condensation.config import RunConfig
from condense.settings import resolve
from condense.workers.context import Progress
from tuning import trial
from tuning.score import Point


def test_an_accuracy_that_is_found_beside_training_is_reported_for_its_own_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(config: RunConfig, progress: Any, **rest: Any) -> None:
        found = {"validation/accuracy": 70.0, "bits_per_dim": 2.0}
        progress(Progress("condensing", 4, 10, {"distance": 1.0} | found))
        progress(Progress("condensing", 9, 10, {"validation/step": 6} | found))

    monkeypatch.setattr(trial, "run", run)
    reports: list[tuple[int, Point]] = []
    values = resolve(RunConfig, None, ["outer_steps=10"]).as_dict()
    trial.CondenseTrial("parent", tmp_path)(0, values, lambda step, point: reports.append((step, point)))
    assert reports == [(4, Point(70.0, 10 * 32 * 32 * 2.0)), (6, Point(70.0, 10 * 32 * 32 * 2.0))]
