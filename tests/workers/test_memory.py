"""Running out of memory: a real refusal of the system, told as the setting to lower."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condense.errors import CapacityError
from condense.learners.evaluation import TESTING
from condense.matching.engine import PARTS
from condense.workers.memory import explain_out_of_memory
from condense.workers.stopwatch import Stopwatch
from tests.conftest import QUICKSTART, TINY

# A process that may take 400 MB more than it has once everything is imported.
LIMITED = """
import resource, sys
from pathlib import Path
from condense.cli import app as cli
from condense.reports import console
from condense.condensation import in_process as local
from condense.learners import evaluation
held = 1024 * int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (held + 400_000_000,) * 2)
cli.main()
"""


def run_limited(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, "run", str(QUICKSTART), *TINY, *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_real_batch_that_memory_does_not_hold_is_named(tmp_path: Path) -> None:
    outcome = run_limited(tmp_path, "matching.real_batch=1000000")
    assert outcome.returncode == 2
    assert "out of memory in real gradients" in outcome.stderr
    assert "lower matching.real_batch or network.width" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not list(tmp_path.glob("condensed/*/data.parquet"))


def test_every_part_of_a_step_has_a_setting_to_lower(tmp_path: Path) -> None:
    from tests.conftest import condense_in

    outcome = condense_in(tmp_path, "run", QUICKSTART, *TINY, "images_per_class=2")
    parts = set(outcome.out.partition("outer steps: ")[2].splitlines()[0].split(", "))
    named = {part.rpartition(" %")[0].rpartition(" ")[0] for part in parts} - {"communication"}
    assert named <= PARTS.keys()
    assert {"real gradients", "matching", "image update"} <= named


def test_a_gpu_without_memory_is_told_and_other_failures_are_left_alone() -> None:
    watch = Stopwatch(torch.device("cpu"))
    refused = pytest.raises(CapacityError, match="out of memory in bits: CUDA out of memory")
    with refused, explain_out_of_memory(lambda: (watch.running, PARTS[watch.running])), watch.part("bits"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(lambda: TESTING):
        raise RuntimeError("shapes do not agree")
