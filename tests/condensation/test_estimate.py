"""What `condense estimate` says, held against the run itself: in CPU-seconds, which a busy machine changes little."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from condense.condensation.calibration import Costs, measure_costs
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.estimate import estimate, predicted
from condense.condensation.loop import condense
from condense.settings import resolve
from condense.synthetic.dataset import CondensedDataset
from condense.workers.checkpoints import Checkpoint, pack
from condense.workers.collective import Alone
from condense.workers.context import WorkerContext
from condense.workers.storage import KEEP
from condense.workers.tracking import NullTracker
from tests.conftest import QUICKSTART, TINY, Command

# Two match steps and some training between them, so that what is extrapolated is extrapolated.
SMALL = (*TINY, "images_per_class=4", "outer_steps=6", "matching.inner_epochs=6", "matching.updates=2")


class Kept:
    """Checkpoints in a list."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        assert checkpoint is not None
        self.sizes.append(len(pack(checkpoint)))

    def latest(self) -> Checkpoint | None:
        return None


def config(*overrides: str) -> RunConfig:
    return resolve(RunConfig, QUICKSTART, (*SMALL, *overrides))


def run(of: RunConfig, kept: Kept) -> CondensedDataset:
    return condense(of, WorkerContext(Alone(), NullTracker(), kept, lambda at: None, torch.device("cpu")))


def test_cpu_seconds_are_those_of_the_run_within_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    of = config()
    source, flow = open_checked(of)
    foreseen = predicted(of, source, flow is not None, measure_costs(of, 10, 1, 1, 0.0), 0, 1)
    made = run(of, Kept())
    steps = sum(made.provenance["seconds_by_part"].values())
    whole = made.provenance["seconds"]
    assert foreseen.seconds["outer steps"] == pytest.approx(steps, rel=0.6)
    assert foreseen.total_s == pytest.approx(whole, rel=0.6)


def test_a_step_takes_as_long_as_the_replicas_of_one_worker_but_for_the_bits() -> None:
    known = {"classes": 10, "outer_step": 5.0, "outer_step_other": 5.0, "once": 2.0}
    costs = Costs(**{field.name: 1 for field in fields(Costs)} | known)
    source, _ = open_checked(config())

    def step(workers: int, replicas: int) -> float:
        of = config(f"replicas={replicas}", "outer_steps=1")
        return predicted(of, source, True, costs, workers, 1).seconds["outer steps"]

    assert step(0, 1) == 3 + 2
    assert step(0, 2) == 2 * 3 + 2
    assert step(2, 2) == 3 + 2 / 2
    assert step(4, 2) == (3 + 2 / 2) / 2
    assert step(2, 3) == (3 * 3 + 2) / 2


def test_evaluations_beside_training_take_what_the_steps_do_not_hide() -> None:
    source, _ = open_checked(config())

    def seconds(outer_step: float, *overrides: str) -> float:
        known = {"classes": 10, "outer_step": outer_step, "outer_step_other": outer_step, "once": 0.0, "bits": 0.0}
        costs = Costs(**{field.name: 1 for field in fields(Costs)} | known)
        of = config("evaluation.every=2", "evaluation.test=false", *overrides)  # three evaluations in six steps
        return predicted(of, source, True, costs, 0, 1).seconds["evaluations"]

    each = seconds(1.0) / 3
    assert seconds(0.0, "evaluation.beside=true") == 3 * each
    assert seconds(each / 6, "evaluation.beside=true") == pytest.approx(2 * each)
    assert seconds(each, "evaluation.beside=true") == each


def test_checkpoints_and_memory_are_those_of_the_run(tmp_path: Path) -> None:
    of, kept = config(), Kept()
    found = estimate(of)
    run(of, kept)
    assert found.checkpoint_bytes == pytest.approx(KEEP * max(kept.sizes), rel=0.02)
    command = [str(Path(sys.executable).with_name("condense")), "run", str(QUICKSTART), *SMALL]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(started.pid, 0)
    assert status == 0
    assert found.chosen.memory_mib == pytest.approx(usage.ru_maxrss / 1024, rel=0.3)


def test_the_command_suggests_a_layout_and_leaves_nothing_behind(condense: Command, tmp_path: Path) -> None:
    outcome = condense("estimate", QUICKSTART, *TINY)
    assert outcome.code == 0
    assert "suggested: workers=" in outcome.out
    assert "0 (this process)" in outcome.out
    assert "checkpoints: " in outcome.out
    assert not list(tmp_path.iterdir())


def test_what_a_run_would_refuse_is_refused(condense: Command) -> None:
    outcome = condense("estimate", QUICKSTART, *TINY, "images_per_class=1000")
    assert outcome.code == 2
    assert "fewer than images_per_class=1000" in outcome.err
