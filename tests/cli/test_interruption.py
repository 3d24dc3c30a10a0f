"""Ctrl-C, SIGTERM and what comes after them, for real: one sentence, one exit code, and the step that it goes on at."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.processes import descendants
from tests.conftest import QUICKSTART, TINY

STEPS = 5000  # so many that no run is over before it is interrupted
SETTINGS = (
    *TINY,
    "network.name=mlp",
    f"outer_steps={STEPS}",
    f"evaluation.every={STEPS}",
    "checkpoint_every=1",
    "cpus_per_worker=1",
)
STOPPED = re.compile(rf"stopped at step (\d+) of {STEPS}; the same command goes on(?: at step (\d+))?\n")


def interrupted(folder: Path, workers: int, number: signal.Signals) -> tuple[int, str, str]:
    """Runs until two more checkpoints are there, then sends the signal: exit code, standard output and error."""
    words = ["run", str(QUICKSTART), *SETTINGS, f"workers={workers}"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from condense.cli.app import main; main()", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def latest() -> int:
        return max(
            (int(file.stem.removeprefix("step-")) for file in folder.glob("runs/*/step-*.safetensors")), default=0
        )

    reached = latest()
    while latest() < reached + 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_every_interruption_is_one_sentence_and_the_same_command_goes_on_there(tmp_path: Path) -> None:
    reached = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        returned, out, err = interrupted(tmp_path, 0, number)
        stopped = STOPPED.fullmatch(err)
        assert stopped, err
        assert returned == code
        assert (f"going on at step {reached} of {STEPS}\n" in out) == bool(reached), out[-500:]
        reached = int(stopped[2] or stopped[1])
    assert reached > 2


@pytest.mark.ray
def test_ctrl_c_ends_a_run_on_ray_as_it_ends_one_in_process(tmp_path: Path) -> None:
    returned, _, err = interrupted(tmp_path, 1, signal.SIGINT)  # SIGTERM there is what `ray job stop` sends
    assert STOPPED.fullmatch(err), err
    assert returned == 130
    assert not [pid for pid in descendants() if "ray" in Path(f"/proc/{pid}/cmdline").read_text()]
