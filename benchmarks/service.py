"""What the service costs beside the in-process loop, and what a second worker gives: the same run three ways.

    python -m benchmarks.service            # 200 outer steps of the digits: minutes on an idle machine with two cores
    python -m benchmarks.service --tiny     # 6 outer steps: does it work?

One line a way: seconds until the first outer step is done (processes, imports, data), seconds from there to the last
one, and those against the in-process loop (overhead) or against one worker (efficiency = one worker / 2 / two workers).
Every worker has one thread; checkpoints go to a folder that is thrown away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cluster.trainer import train
from condense.config import RunConfig
from condense.local import condense_here
from condense.settings import resolve
from condense.surroundings import Progress
from condense.tracking import NullTracker

ROOT = Path(__file__).parents[1]
FULL = ("outer_steps=200", "matching.real_batch=128", "network.width=64", "images_per_class=10")
TINY = ("outer_steps=6", "matching.real_batch=8", "network.width=8", "data.image_size=16")
COMMON = ("bits_weight=0", "cpus_per_worker=1", "evaluation.every=100000", "evaluation.controls=false")
CHEAP = ("evaluation.learners=1", "evaluation.validation_images=10")


def measure(workers: int, settings: tuple[str, ...]) -> tuple[float, float]:
    """(seconds to the end of the first outer step, seconds from there to the end of the last)."""
    marks: dict[int, float] = {}

    def progress(at: Progress) -> None:
        if at.stage == "condensing":
            marks.setdefault(at.done, time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        overrides = (*COMMON, *CHEAP, *settings, f"workers={workers}", f"storage={folder}", "tracking_uri=none")
        config = resolve(RunConfig, ROOT / "examples" / "quickstart.yaml", overrides)
        started = time.perf_counter()
        if workers == 0:
            condense_here(config, NullTracker(), progress)
        else:
            train(config, 10, NullTracker(), progress)
    return marks[min(marks)] - started, marks[config.outer_steps] - marks[min(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    looped: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(1 if arguments.tiny else arguments.repeats):
        for workers, seconds in looped.items():  # in turn, so that a busy minute strikes all alike
            start, loop = measure(workers, TINY if arguments.tiny else FULL)
            seconds.append(loop)
            print(json.dumps({"workers": workers, "start_s": round(start, 2), "loop_s": round(loop, 2)}), flush=True)
    alone, one, two = (statistics.median(seconds) for seconds in looped.values())
    print(f"overhead of one worker beside the in-process loop {100 * (one / alone - 1):.1f} %")
    print(f"efficiency of two workers beside one {one / (2 * two):.2f}")


if __name__ == "__main__":
    main()
