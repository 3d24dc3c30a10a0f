"""A run whose process is killed, for real, and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import QUICKSTART, TINY

STEPS = 150


def command(folder: Path) -> list[str]:
    settings = (*TINY, "network.name=mlp", f"outer_steps={STEPS}", f"evaluation.every={STEPS}", "checkpoint_every=1")
    return [sys.executable, "-c", "from condense.cli.app import main; main()", "run", str(QUICKSTART), *settings]


def digest(folder: Path) -> str:
    (file,) = (folder / "condensed").glob("*/data.parquet")
    metadata = json.loads(pq.read_schema(file).metadata[b"condense"])
    found: str = metadata["content_digest"]
    return found


def latest(folder: Path) -> int:
    """The step of the latest checkpoint; 0 without one."""
    return max((int(file.stem.removeprefix("step-")) for file in folder.glob("runs/*/step-*.safetensors")), default=0)


def kill(folder: Path) -> str:
    """Starts the run, kills it some time after its next checkpoint, and returns what it said."""
    reached = latest(folder)
    process = subprocess.Popen(command(folder), cwd=folder, stdout=subprocess.PIPE, text=True)
    while latest(folder) == reached:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.2))
    os.kill(process.pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return said


def test_a_run_killed_twice_at_random_steps_and_started_again_gives_the_same_digest(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    subprocess.run(command(whole), cwd=whole, check=True, capture_output=True)
    kill(killed)
    reached = latest(killed)
    assert f"going on at step {reached} of {STEPS}" in kill(killed)
    assert not list((killed / "condensed").glob("*/data.parquet")), "killed too late: the run was over"
    reached = latest(killed)
    again = subprocess.run(command(killed), cwd=killed, check=True, capture_output=True, text=True)
    assert digest(killed) == digest(whole)
    assert f"going on at step {reached} of {STEPS}" in again.stdout
