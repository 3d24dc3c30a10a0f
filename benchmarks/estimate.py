"""How near `condense estimate` comes to the run: predicted and measured time and memory.

    python -m benchmarks estimate --data FOLDER --out benchmarks/results/estimate.jsonl                # two idle cores
    python -m benchmarks estimate --data FOLDER --clock cpu --out benchmarks/results/estimate.jsonl    # a busy machine

FOLDER has fashion_mnist_train.parquet and cifar10_train.parquet. With `--clock cpu` both are CPU-seconds of
one thread in one process (workers=0), which other work on the machine changes less; the start of Ray is not in them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, child, options, tell
from condense.condensation.calibration import Costs, measure_costs
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.estimate import estimate, predicted
from condense.settings import resolve, validate

EXAMPLES = ROOT / "examples"
FEW = ("evaluation.learners=1", "evaluation.controls=false", "bits_weight=0", "evaluation.validation_images=500")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits, quickstart": ("quickstart.yaml", ()),
    "digits, ipc 1, 12 steps": (
        "quickstart.yaml",
        ("outer_steps=12", "evaluation.every=12", "evaluation.learners=1", "evaluation.controls=false"),
    ),
    "digits, ipc 4, 2 steps": (
        "quickstart.yaml",
        (*FEW, "images_per_class=4", "outer_steps=2", "evaluation.every=2", "matching.inner_epochs=20"),
    ),
    "Fashion-MNIST, ipc 1, 4 steps": (
        "fashion-mnist.yaml",
        ("source=parquet:{data}/fashion_mnist_train.parquet", *FEW, "outer_steps=4", "evaluation.every=4"),
    ),
    "Fashion-MNIST, ipc 10, 2 steps": (
        "fashion-mnist.yaml",
        (
            "source=parquet:{data}/fashion_mnist_train.parquet",
            *FEW,
            "images_per_class=10",
            "outer_steps=2",
            "evaluation.every=2",
            "network.width=32",
            "matching.updates=1",
            "matching.inner_epochs=20",
        ),
    ),
    "CIFAR-10, ipc 1, 4 steps": (
        "fashion-mnist.yaml",
        (
            "source=parquet:{data}/cifar10_train.parquet",
            "images.init=real",
            "matching.updates=1",
            *FEW,
            "images_per_class=1",
            "outer_steps=4",
            "evaluation.every=4",
        ),
    ),
}


def run(config: Path, overrides: list[str], workers: int) -> dict[str, float]:
    """A real run in a folder of its own: seconds, CPU-seconds of the command, and memory of what computes, MiB."""
    command = [str(Path(sys.executable).with_name("condense")), "run", str(config), *overrides]
    with tempfile.TemporaryDirectory() as folder:
        started, begun = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL), time.perf_counter()
        ended, peaks = threading.Event(), [0.0]
        watch = threading.Thread(target=_watch, args=(ended, peaks))
        watch.start()
        _, status, usage = os.wait4(started.pid, 0)
        ended.set()
        watch.join()
        if status:
            raise RuntimeError(f"{command} ended with {status}")
    memory = max(peaks) if workers else usage.ru_maxrss / 1024
    return {"s": time.perf_counter() - begun, "cpu_s": usage.ru_utime + usage.ru_stime, "mib": memory}


def _watch(ended: threading.Event, peaks: list[float]) -> None:
    """Notes the peak memory of every worker of Ray Train, MiB."""
    while not ended.wait(0.5):
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError, IndexError):
                text = status.read_text()
                if text.startswith("Name:\tray::RayTrain"):
                    peaks.append(int(text.partition("VmHWM:")[2].split()[0]) / 1024)


def costs_in_cpu_seconds(config: RunConfig) -> Costs:
    """The calibration of a process of one thread, in CPU-seconds."""
    return Costs(**child("benchmarks.estimate", "--data", "-", "--costs", json.dumps(config.as_dict())))


def main() -> None:
    parser = options(__doc__, data=True)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of workers")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), help="default: all")
    parser.add_argument("--costs", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.costs:
        ready, time.perf_counter = time.process_time(), time.process_time
        config = validate(RunConfig, json.loads(arguments.costs), where="the config")
        print(json.dumps(asdict(measure_costs(config, len(open_checked(config)[0].class_names), 1, 1, ready))))
        return
    for case in arguments.cases:
        file, settings = CASES[case]
        for workers in [0] if arguments.clock == "cpu" else arguments.workers:
            overrides = [text.format(data=Path(arguments.data).absolute()) for text in settings]
            overrides += [f"workers={workers}", "tracking_uri=none"]
            config = resolve(RunConfig, EXAMPLES / file, overrides)
            row: dict[str, Any] = {"case": case, "clock": arguments.clock, "workers": workers}
            if arguments.clock == "cpu":
                source, flow = open_checked(config)
                at = predicted(config, source, flow is not None, costs_in_cpu_seconds(config), 0, 1)
            else:
                begun = time.perf_counter()
                at = estimate(config).chosen
                row["estimating_s"] = round(time.perf_counter() - begun, 1)
            row |= {"predicted_s": round(at.total_s, 1), "predicted_mib": round(at.memory_mib)}
            row["parts"] = {part: round(seconds, 1) for part, seconds in at.seconds.items()}
            taken = run(EXAMPLES / file, overrides, workers)
            row["measured_s"] = round(taken["cpu_s" if arguments.clock == "cpu" else "s"], 1)
            row["measured_mib"] = round(taken["mib"])
            tell(arguments.out, row)


if __name__ == "__main__":
    main()
