"""What Ray and MLflow cost beside the in-process loop, and what a second worker gives.

    python -m benchmarks workers --repeats 3 --out benchmarks/results/service.jsonl   # two idle cores; eight minutes
    python -m benchmarks workers --set replicas=2 --out benchmarks/results/replicas.jsonl  # a network on each of two
    python -m benchmarks workers --tiny                                   # does it work?
    python -m benchmarks workers --read benchmarks/results/service.jsonl  # the table of rows taken before

One line a way: seconds until the first outer step is done (processes, imports, data), seconds and CPU-seconds of the
workers from there to the last one, those of everything else on the machine meanwhile (Ray's other processes, and what
disturbs the measurement), and seconds of its parts; then the medians against the in-process loop (overhead) and against
one worker (efficiency = one worker / 2 / two workers; in CPU-seconds, which a busy machine does not change but which
leave out waiting, one worker / both workers). Every worker has one thread.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, finished, options, tell
from cluster.trainer import train
from condense.condensation.config import RunConfig
from condense.condensation.in_process import condense_here
from condense.settings import resolve
from condense.workers.context import Progress
from condense.workers.tracking import NullTracker

# The published schedule at ten images per class has 50 inner epochs: with 10, matching and training take about as long.
FULL = (
    "images_per_class=10",
    "matching.inner_epochs=10",
    "matching.updates=1",
    "matching.real_batch=64",
    "network.width=64",
    "outer_steps=6",
)
TINY = ("outer_steps=6", "matching.real_batch=8", "network.width=8", "data.image_size=16")
COMMON = ("bits_weight=0", "cpus_per_worker=1", "evaluation.every=100000", "evaluation.controls=false")
CHEAP = ("evaluation.learners=1", "evaluation.validation_images=10")


def measure(workers: int, settings: tuple[str, ...]) -> dict[str, Any]:
    """Seconds to the end of the first outer step, from there to the end of the last, and by part of all steps."""
    marks: dict[int, tuple[float, float, float]] = {}

    def progress(at: Progress) -> None:
        if at.stage == "condensing" and at.done not in marks:
            marks[at.done] = time.perf_counter(), cpu_seconds(workers), busy_seconds()

    with tempfile.TemporaryDirectory() as folder:
        overrides = (*COMMON, *CHEAP, *settings, f"workers={workers}", f"storage={folder}", "tracking_uri=none")
        config = resolve(RunConfig, ROOT / "examples" / "quickstart.yaml", overrides)
        started = time.perf_counter()
        if workers == 0:
            made = condense_here(config, NullTracker(), progress)
        else:
            made = train(config, 10, NullTracker(), progress)
    first, last = marks[min(marks)], marks[config.outer_steps]
    loop_s, loop_cpu_s, busy_s = (round(end - start, 2) for start, end in zip(first, last, strict=True))
    parts = {name: round(seconds, 2) for name, seconds in made.provenance["seconds_by_part"].items()}
    return {
        "workers": workers,
        "steps": config.outer_steps - min(marks),
        "start_s": round(first[0] - started, 2),
        "loop_s": loop_s,
        "loop_cpu_s": loop_cpu_s,
        "beside_cpu_s": round(busy_s - loop_cpu_s, 2),
        "parts": parts,
    }


def cpu_seconds(workers: int) -> float:
    """CPU-seconds so far of what computes: this process, or the workers of Ray Train that it started, together."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            stats[int(path.parent.name)] = name, rest.split()
    tree = [os.getpid()]
    for ancestor in tree:
        tree.extend(pid for pid, (_, fields) in stats.items() if int(fields[1]) == ancestor)
    computing = [pid for pid in tree if stats[pid][0].startswith("ray::RayTrain")] if workers else tree[:1]
    ticks = sum(int(stats[pid][1][11]) + int(stats[pid][1][12]) for pid in computing)  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU-seconds so far of everything on this machine."""
    user, nice, system, _, _, interrupts, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, interrupts))) / os.sysconf("SC_CLK_TCK")


def show(rows: list[dict[str, Any]]) -> None:
    """The medians and what they say."""
    for key, together in (("loop_s", 1), ("loop_cpu_s", 2)):  # CPU-seconds are those of both workers together
        loops = {n: [row[key] / row["steps"] for row in rows if row["workers"] == n] for n in (0, 1, 2)}
        alone, one, two = (statistics.median(seconds) for seconds in loops.values())
        for workers, seconds in loops.items():
            print(f"{key}, {workers} workers: {[round(of_one, 2) for of_one in seconds]} an outer step")
        print(f"overhead of one worker beside the in-process loop {100 * (one / alone - 1):.1f} %")
        print(f"efficiency of two workers beside one {together * one / (2 * two):.2f}")
    for workers in (0, 1, 2):
        starts = [row["start_s"] for row in rows if row["workers"] == workers]
        print(f"{workers} workers: to the end of the first step {starts} s")


def main() -> None:
    arguments = options(__doc__, repeats=2, settings=True).parse_args()
    if arguments.read:
        show(finished(arguments.read))
        return
    torch.set_num_threads(1)
    rows = []
    for _ in range(1 if arguments.tiny else arguments.repeats):
        for workers in (0, 1, 2):  # in turn, so that a busy minute strikes all alike
            rows.append(measure(workers, (*(TINY if arguments.tiny else FULL), *arguments.set)))
            tell(arguments.out, rows[-1])
    show(rows)


if __name__ == "__main__":
    main()
