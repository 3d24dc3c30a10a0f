"""What a job is given knows nothing of condensation: a counter runs, stops, resumes and keeps to its time with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from condense.workers.context import Progress
from condense.workers.in_process import local_context
from condense.workers.tracking import RecordingTracker
from tests.builders.counter import CounterConfig, count
from tests.conftest import ROOT

KILLED = """
import os, signal, sys
from condense.workers.in_process import local_context
from condense.workers.tracking import NullTracker
from tests.builders.counter import CounterConfig, count
def kill(at):
    if at.done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
config = CounterConfig(sys.argv[1])
count(config, local_context(config.storage, "counter", NullTracker(), kill))
"""


def test_a_counter_killed_at_its_fifth_step_goes_on_and_ends_with_the_same_sum(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    config, seen, tracker = CounterConfig(str(tmp_path)), list[Progress](), RecordingTracker()
    found = count(config, local_context(config.storage, "counter", tracker, seen.append))
    assert found == {"sum": 36.0, "done": 8, "began": 4, "workers": 1}  # the kill came before the fifth was kept
    assert [(at.stage, at.done, at.total) for at in seen] == [("counting", step, 8) for step in (5, 6, 7, 8)]
    assert tracker.rows["sum"] == [(5, 15.0), (6, 21.0), (7, 28.0), (8, 36.0)]


@pytest.mark.parametrize("sittings", [1, 2])
def test_a_counter_with_a_time_budget_uses_it_over_all_sittings(tmp_path: Path, sittings: int) -> None:
    config = CounterConfig(str(tmp_path), total=1000, step_s=0.02, budget_s=0.5)

    def stop(at: Progress) -> None:
        if sittings == 2 and at.done == 10:
            raise KeyboardInterrupt

    started = time.perf_counter()
    if sittings == 2:
        with pytest.raises(KeyboardInterrupt):
            count(config, local_context(config.storage, "counter", RecordingTracker(), stop))
    found = count(config, local_context(config.storage, "counter", RecordingTracker(), lambda at: None))
    assert 5 < found["done"] < 30
    assert time.perf_counter() - started < 5
