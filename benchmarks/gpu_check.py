"""The GPU tests and benchmarks in one process, without Ray or MLflow, into one table: `make gpu-check`.

    python -m benchmarks gpu-check --out gpu-check.md --data FOLDER
    python -m benchmarks gpu-check --parts repeat runs --runs dm dsa --data FOLDER
    python -m benchmarks gpu-check --device cpu --tiny        # tries this file where there is no GPU

FOLDER holds the *_train.parquet files (cifar10, fashion_mnist); without it the runs are on scikit-learn's digits. A
part starts only while `--minutes` are not used up, and each run has its own share of outer steps, so that the whole
ends in time; the table is written after every part.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine import SHAPES, engine
from benchmarks.gpu_launches import counted
from benchmarks.harness import ROOT, condense_alone
from condense.condensation.config import RunConfig
from condense.errors import ConfigError
from condense.learners.networks import NetworkConfig
from condense.reports.card import spread
from condense.settings import resolve
from condense.workers.context import Progress
from condense.workers.devices import local_device
from condense.workers.memory import keep_freed_memory

# (example, file of FOLDER, overrides). Steps were not tried on a GPU: shorten them where the time is up too early.
RUNS = (
    ("fashion-mnist", "fashion_mnist", ("images_per_class=1", "bits_weight=0", "outer_steps=200")),
    ("cifar10", "cifar10", ("images_per_class=10", "outer_steps=1000")),
    ("dsa", "cifar10", ("images_per_class=10", "outer_steps=60")),
    ("dm", "cifar10", ("images_per_class=10", "outer_steps=2000")),
    ("idc", "cifar10", ("images_per_class=10", "outer_steps=10")),
)
# On a GPU some gradients of PyTorch add in no fixed order: whether a seed gives one digest there is seen, not assumed.
TWICE = (("fashion-mnist", "fashion_mnist", ("outer_steps=5",)), ("dsa", "cifar10", ("outer_steps=1",)))
PARTS = ("tests", "steps", "repeat", "runs")
EVALUATION = ("evaluation.learners=3", "evaluation.controls=false", "evaluation.every=1000000", "workers=0")
TINY = (
    "source=digits",
    "bits_weight=0",
    "data.image_size=16",
    "network.name=mlp",
    "network.width=8",
    "network.depth=1",
    "outer_steps=1",
    "matching.real_batch=8",
    "evaluation.recipe=dc",
    "evaluation.learners=1",
    "evaluation.validation_images=40",
)


def tests() -> str:
    """One line on the GPU tests."""
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-m", "gpu", str(ROOT / "tests" / "test_gpu.py")])
    return f"GPU tests: {'passed' if code == 0 else f'FAILED ({pytest.ExitCode(code).name})'}"


def step_time(device: str, dataset: str, ipc: int, precision: str, objective: str, *, tiny: bool) -> float:
    """Milliseconds of an outer step of one match, the median of 20 after 3 that are not counted."""
    shape, real, network = SHAPES[dataset], 256, NetworkConfig()
    if tiny:
        shape, real, network = (shape[0], 8, 8), 4, NetworkConfig(width=4, depth=2)
    made = engine(shape, ipc, real=real, network=network, precision=precision, device=device, objective=objective)
    times = []
    for step in range(5 if tiny else 23):
        started = time.perf_counter()
        made.outer_step(step)  # ends in a transfer to the host, so it waits for the device
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times[3:])[len(times[3:]) // 2]


def provenance(
    example: str,
    file: Path | None,
    overrides: Sequence[str],
    device: str,
    *,
    tiny: bool,
    progress: Callable[[Progress], None] = lambda at: None,
) -> dict[str, Any]:
    """Of a run in this process."""
    source = () if file is None else (f"source=parquet:{file}",)
    small = TINY if tiny else (() if file else ("source=digits",))
    config = resolve(RunConfig, ROOT / "examples" / f"{example}.yaml", (*overrides, *EVALUATION, *source, *small))
    return condense_alone(config, progress, device=device).provenance


def run(example: str, file: Path | None, overrides: Sequence[str], device: str, *, tiny: bool) -> tuple[str, str]:
    """A run in this process: accuracy and wall seconds, in words."""
    started, ended = time.perf_counter(), 0.0

    def progress(at: Progress) -> None:
        nonlocal ended
        if at.stage == "condensing" and at.done == at.total:
            ended = ended or time.perf_counter()

    found = provenance(example, file, overrides, device, tiny=tiny, progress=progress)["evaluation"]
    accuracy = f"{spread(found['accuracy_mean'], found['accuracy_std'])} % ({found['recipe']})"
    return accuracy, f"{ended - started:.0f} s, {time.perf_counter() - started:.0f} s with evaluation"


def step_times(device: str, write: Callable[[str], None], deadline: float, *, tiny: bool) -> None:
    """Writes a row for each objective, shape and number of images a class, while there is time."""
    write(
        "\n| objective | images | ipc | float32 ms | bfloat16 ms | launches | us each |\n|---|---|---|---|---|---|---|"
    )
    for objective, dataset, ipc in product(("gradient", "distribution"), SHAPES, (1, 10, 50)):
        if time.monotonic() > deadline:
            continue
        times = [
            step_time(device, dataset, ipc, precision, objective, tiny=tiny) for precision in ("float32", "bfloat16")
        ]
        parts = counted(objective, ipc, shape=SHAPES[dataset])
        launches = parts["network"] + parts["target"] + parts["update"]
        each = 1000 * times[0] / launches  # in float32; near 6, the step is bound by its launches
        write(f"| {objective} | {dataset} | {ipc} | {times[0]:.1f} | {times[1]:.1f} | {launches} | {each:.1f} |")


def main() -> int:
    """Reads the arguments, runs the parts while there is time; exit code 1 where the tests failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check.md"), help="the table that it writes")
    parser.add_argument("--data", type=Path, help="folder of Parquet files; without it digits")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=18, help="no part starts after them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--runs", nargs="+", choices=[example for example, *_ in RUNS], help="of the runs only these")
    parser.add_argument("--tiny", action="store_true", help="only try whether it works")
    arguments = parser.parse_args()
    try:
        local_device(1 if arguments.device == "cuda" else 0)
    except ConfigError as error:
        parser.error(str(error))
    keep_freed_memory()
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU"
    lines: list[str] = []
    deadline = time.monotonic() + 60 * arguments.minutes

    def write(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        arguments.out.write_text("\n".join(lines) + "\n")

    def file_of(data: str) -> Path | None:
        return arguments.data / f"{data}_train.parquet" if arguments.data else None

    write(f"# GPU check: {name}, PyTorch {torch.__version__}\n")
    if arguments.device == "cuda" and "tests" in arguments.parts:
        write(tests())
    if "steps" in arguments.parts:
        step_times(arguments.device, write, deadline, tiny=arguments.tiny)
    if "repeat" in arguments.parts:
        write("\n| run, twice | settings | same bytes |\n|---|---|---|")
        once = ("evaluation.recipe=dc", "evaluation.test=false")
        for example, data, overrides in TWICE:
            digests = {
                provenance(example, file_of(data), (*overrides, *once), arguments.device, tiny=arguments.tiny)[
                    "content_digest"
                ]
                for _ in range(2)
            }
            write(f"| {example} | {' '.join(overrides)} | {'yes' if len(digests) == 1 else 'no'} |")
    if "runs" in arguments.parts:
        write("\n| run | settings | test accuracy | seconds |\n|---|---|---|---|")
        for example, data, overrides in RUNS:
            if arguments.runs and example not in arguments.runs:
                continue
            if time.monotonic() > deadline:
                write(f"| {example} | {' '.join(overrides)} | not run: the time was up | |")
                continue
            accuracy, seconds = run(example, file_of(data), overrides, arguments.device, tiny=arguments.tiny)
            write(f"| {example} | {' '.join(overrides)} | {accuracy} | {seconds} |")
    return int(any("FAILED" in line for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
