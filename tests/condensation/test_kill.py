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


def command(folder: Path) -> list[str]:
    settings = (*TINY, "network.name=mlp", "outer_steps=40", "evaluation.every=40", "checkpoint_every=1")
    return [sys.executable, "-c", "from condense.cli.app import main; main()", "run", str(QUICKSTART), *settings]


def digest(folder: Path) -> str:
    (file,) = (folder / "condensed").glob("*/data.parquet")
    metadata = json.loads(pq.read_schema(file).metadata[b"condense"])
    found: str = metadata["content_digest"]
    return found


def test_a_run_killed_at_a_random_step_and_started_again_gives_the_same_digest(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    subprocess.run(command(whole), cwd=whole, check=True, capture_output=True)
    process = subprocess.Popen(command(killed), cwd=killed, stdout=subprocess.DEVNULL)
    while not list(killed.glob("runs/*/step-*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((killed / "condensed").glob("*/data.parquet")), "killed too late: the run was over"
    again = subprocess.run(command(killed), cwd=killed, check=True, capture_output=True, text=True)
    assert digest(killed) == digest(whole)
    assert "condensing 1/40" not in again.stdout, "the second run started anew"
