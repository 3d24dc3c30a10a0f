"""Evaluations in a process beside training: the same numbers, whatever ends the process or the run."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.errors import CapacityError, ConfigError, NonFiniteError
from condense.learners.evaluation_process import EvaluationProcess
from condense.learners.recipes import Recipe
from condense.settings import resolve
from condense.synthetic.dataset import CondensedDataset
from condense.workers import checkpoints
from condense.workers.checkpoints import Checkpoints, LocalCheckpoints, NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.tracking import RecordingTracker
from tests.builders.evaluations import QUICK, evaluator, toy
from tests.builders.runs import KilledAfter, KilledError, config, run
from tests.builders.threads import Threads, on_threads
from tests.conftest import QUICKSTART
from tests.conftest import TINY as COMMAND

ACCURACY = "validation/accuracy"
RUN = (
    "outer_steps=6",
    "images_per_class=2",
    "matching.steps=1",
    "matching.inner_epochs=0",
    "images.labels=soft",
    "images.factor=2",  # a canvas is what is stored, and not what learners see
)


def gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process that this one did not start is gone, or will be."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def children(pid: int) -> dict[int, str]:
    """Processes that it started, by id, with their command lines."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found[int(status.parent.name)] = (status.parent / "cmdline").read_text()
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def in_the_way() -> RecordingTracker:
    tracker = RecordingTracker()
    run(config(*RUN), tracker=tracker)
    return tracker


def told_of(
    tracker: RecordingTracker,
    keep: Checkpoints | None = None,
    *overrides: str,
    after_first_step: Callable[[], None] = lambda: None,
) -> list[Progress]:
    """What a run that is evaluated beside training tells about accuracies."""
    told = []

    def progress(at: Progress) -> None:
        assert 0 <= at.done <= at.total
        if at.done == 1 and at.stage == "condensing":
            after_first_step()
        if ACCURACY in at.values:
            told.append(at)

    context = WorkerContext(Alone(), tracker, keep or NoCheckpoints(), progress, torch.device("cpu"))
    condense(config(*RUN, "evaluation.beside=true", *overrides), context)
    return told


def signalled(name: signal.Signals) -> None:
    """The process that evaluates."""
    (process,) = multiprocessing.active_children()
    assert process.pid is not None
    os.kill(process.pid, name)


def assert_same_records(found: RecordingTracker, expected: RecordingTracker) -> None:
    rows = {name: row for name, row in found.rows.items() if not name.startswith("seconds/")}
    assert rows == {name: row for name, row in expected.rows.items() if not name.startswith("seconds/")}
    for (step, picture), (its_step, its) in zip(
        found.pictures["synthetic"], expected.pictures["synthetic"], strict=True
    ):
        assert step == its_step
        assert torch.equal(picture, its)


def test_a_run_evaluated_beside_training_records_the_numbers_of_one_in_the_way(in_the_way: RecordingTracker) -> None:
    tracker = RecordingTracker()
    told = told_of(tracker)
    assert_same_records(tracker, in_the_way)
    assert [(at.values["validation/step"], at.values[ACCURACY]) for at in told] == in_the_way.rows[ACCURACY]
    assert all(at.done >= at.values["validation/step"] for at in told)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("resumed", ["evaluation.beside=true", "evaluation.beside=false"])
def test_a_resumed_run_makes_the_evaluations_that_were_not_done(
    resumed: str, in_the_way: RecordingTracker, tmp_path: Path
) -> None:
    tracker = RecordingTracker()
    with pytest.raises(KilledError):  # while the process stands still
        told_of(tracker, KilledAfter(tmp_path, 4), after_first_step=lambda: signalled(signal.SIGSTOP))
    stored = checkpoints.read(tmp_path / checkpoints.FILE)
    assert {int(name.split(".")[1]) for name in stored.tensors if name.startswith("waiting.")} == {2, 4}
    assert ACCURACY not in tracker.rows
    told_of(tracker, LocalCheckpoints(tmp_path), resumed)
    assert_same_records(tracker, in_the_way)


def test_evaluations_whose_process_is_killed_are_made_in_the_way_and_it_is_said(
    in_the_way: RecordingTracker, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = RecordingTracker()
    with caplog.at_level(logging.WARNING):
        told = told_of(tracker, after_first_step=lambda: signalled(signal.SIGKILL))
    assert_same_records(tracker, in_the_way)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "the set after outer step 2 has ended (SIGKILL, as where the system has no memory left)" in warning
    assert {at.stage for at in told} == {"condensing, evaluated in the way"}


def test_evaluations_come_in_order_and_one_that_diverges_is_an_error() -> None:
    wild = evaluator(Recipe("wild", epochs=20, augmentation="none", learning_rate=1e30))
    with closing(EvaluationProcess(wild, 1, toy(20, 1), torch.device("cpu"))) as beside:
        for step in (1, 2, 3):
            beside.ask(step, *toy(20, 0))
        assert not list(beside.arrived())
        with pytest.raises(NonFiniteError, match="recipe wild"):
            list(beside.waited(2))
        assert not beside.ended


def test_what_the_process_has_no_memory_for_is_evaluated_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(beside: EvaluationProcess, packed: Any) -> None:
        raise CapacityError("out of memory in testing learners: of the GPU")

    monkeypatch.setattr(EvaluationProcess, "_call", refused)
    quick = evaluator(QUICK)
    with closing(EvaluationProcess(quick, 2, toy(200, 1), torch.device("cpu"))) as beside:
        for step in (1, 2):
            beside.ask(step, *toy(20, 0))
        found = dict(beside.waited())
        assert "of the GPU" in beside.ended
    here = quick.evaluate(*toy(20, 0), [toy(200, 1)], learners=2, collective=Alone())
    assert found == {1: here, 2: here}


def of_two_workers(workers: Threads, *overrides: str) -> CondensedDataset:
    context = WorkerContext(workers, RecordingTracker(), NoCheckpoints(), lambda at: None, torch.device("cpu"))
    return condense(config(*RUN, "evaluation.test=false", *overrides), context)


def test_all_workers_know_what_the_process_of_the_first_has_found() -> None:
    first, second = on_threads(2, lambda workers: of_two_workers(workers, "evaluation.beside=true"))
    shared, _ = on_threads(2, of_two_workers)
    assert first.provenance["content_digest"] == shared.provenance["content_digest"]
    assert first.provenance["validation"] == second.provenance["validation"] == shared.provenance["validation"]


def test_all_workers_stop_with_an_error_of_the_process_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(beside: EvaluationProcess, left: int = 0) -> Iterator[Any]:
        raise NonFiniteError("a learner diverged")

    monkeypatch.setattr(EvaluationProcess, "waited", diverged)

    def stopped(workers: Threads) -> None:
        with pytest.raises(NonFiniteError, match="a learner diverged"):
            of_two_workers(workers, "evaluation.beside=true")

    on_threads(2, stopped)
    assert not multiprocessing.active_children()


def command(folder: Path) -> subprocess.Popen[str]:
    settings = (*COMMAND, "network.name=mlp", "outer_steps=5000", "evaluation.every=1", "evaluation.beside=true")
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from condense.cli.app import main; main()",
            "run",
            str(QUICKSTART),
            *settings,
            "checkpoint_every=1",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_a_run_that_is_killed_or_interrupted(ending: signal.Signals, tmp_path: Path) -> None:
    process = command(tmp_path)
    # The set after step 3 is kept when the evaluation of that after step 1 is done: the process is at the next one.
    while not list(tmp_path.glob("runs/*/step-*3.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    left = children(process.pid)
    assert any("spawn_main" in line for line in left.values())
    if ending == signal.SIGINT:
        os.killpg(process.pid, ending)  # as a terminal does
    else:
        os.kill(process.pid, ending)
    _, said = process.communicate(timeout=20)
    assert all(gone(pid) for pid in left)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("other", "key"), [("evaluation.patience=2", "evaluation.patience"), ("time_budget_s=60", "time_budget_s")]
)
def test_what_decides_by_an_evaluation_at_once_excludes_one_beside_training(other: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} .*evaluation.beside"):
        resolve(RunConfig, None, ["evaluation.beside=true", other])


def test_where_a_run_is_evaluated_does_not_change_what_it_is() -> None:
    assert config("evaluation.beside=true").identity() == config().identity()
