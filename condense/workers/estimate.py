"""Says what any job takes on this machine: its layouts, what Ray and MLflow add, the memory that is left.

A job measures its own parts in a fresh process, and predicts each layout from them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condense.errors import CapacityError

MIB = 1 << 20

# From runs of the digits on two idle cores of an AMD EPYC, with Ray and without, less two times the imports.
RAY_START_S = 11.5  # Ray itself, the placement of the workers, Ray Train
RAY_END_S = 2.0
TRACKED_S = 7.0  # imports of MLflow, its store, the registered version
RAY_MIB = 90.0  # of a worker, for Ray: 59 for its imports
TRACKED_MIB = 55.0  # of a process that logs to MLflow, for its imports


@dataclass(frozen=True)
class Layout:
    """One way to run a job, and what it takes.

    Attributes:
        workers: how many; 0 is in this process.
        threads: of each.
        seconds: by part of the job.
        memory_mib: peak of the process that needs most.
    """

    workers: int
    threads: int
    seconds: dict[str, float]
    memory_mib: float

    @property
    def total_s(self) -> float:
        """Seconds of the whole command."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Estimate:
    """What a job takes as its config stands, and on other numbers of workers.

    Attributes:
        chosen: as the config stands.
        others: on other numbers of workers.
        best: the fastest of them that fits into memory.
        checkpoint_bytes: of all checkpoints that are kept at once.
        device_mib: peak on each GPU; 0 without one.
        memory_available_mib: what this machine can still give.
        measured: what was measured, in words.
    """

    chosen: Layout
    others: tuple[Layout, ...]
    best: Layout
    checkpoint_bytes: int
    device_mib: float
    memory_available_mib: float
    measured: str


def best_of(layouts: list[Layout], available_mib: float) -> Layout:
    """Returns the fastest layout that fits into memory; the first where none fits."""
    fitting = [layout for layout in layouts if layout.memory_mib * max(layout.workers, 1) <= available_mib]
    return min(fitting or layouts[:1], key=lambda layout: layout.total_s)


def measure_alone(module: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a module in a fresh process, and returns the last line that it prints, as JSON.

    Args:
        module: takes `given`, and `started` in seconds since the epoch, as JSON in its first argument. It prints what
            it measured, or the `problem` and `remedy` of an error.
        given: plain values.

    Raises:
        CapacityError: the process ended early, or printed a problem.
    """
    command = [sys.executable, "-m", module, json.dumps({**given, "started": time.time()})]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CapacityError(
            f"the calibration ended early: {reason}", "is there enough memory? Try fewer images_per_class"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "problem" in found:
        raise CapacityError(found["problem"], found["remedy"])
    return found


def available_mib() -> float:
    """Returns the memory that this machine can still give: what Linux says of it, elsewhere all that there is."""
    stated = Path("/proc/meminfo")
    if stated.exists():
        return int(stated.read_text().partition("MemAvailable:")[2].split()[0]) / 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
