"""What a step of the engine costs: CPU-seconds against the plain reference, and peak memory.

    python -m benchmarks engine speed --out benchmarks/results/engine-speed.jsonl
    python -m benchmarks engine memory --out benchmarks/results/engine-memory.jsonl

`speed` times one match step (10 classes, 256 real images each, width 128, one image update) and one epoch of the
network on the synthetic set: the reference (benchmarks/reference/dc.py) in a process of its own, whose allocator is
left alone, ours in float32 and in bfloat16 likewise, one after the other, `--repeats` rounds. CPU-seconds, so that
other work on the machine counts little; medians, and the ratio of each round. `memory` runs one outer step per process
on generated images of a tiny network, and prints what the process's memory grew by.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch

from benchmarks.harness import RESULTS, append, child, finished, options, quiet
from condense.data.normalisation import Normalisation
from condense.learners.networks import NetworkConfig, build_network
from condense.matching.config import MatchingConfig
from condense.matching.engine import Engine
from condense.matching.objectives import build_objective
from condense.matching.schedule import Schedule
from condense.synthetic.config import ImagesConfig
from condense.synthetic.synthetic_set import initial_set
from condense.workers.collective import Alone
from condense.workers.mesh import build_mesh

SHAPES = {"mnist": (1, 28, 28), "cifar": (3, 32, 32)}
CLASSES, REAL, WIDTH = 10, 256, 128


def engine(
    shape: tuple[int, int, int],
    ipc: int,
    *,
    classes: int = CLASSES,
    real: int = REAL,
    network: NetworkConfig | None = None,
    precision: str = "float32",
    device: str = "cpu",
    objective: str = "gradient",
) -> Engine:
    """One worker's engine on generated images, one match step and one image update an outer step."""
    draws = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (real + 1, *shape), generator=draws, dtype=torch.uint8) for _ in range(classes)]
    images = [of_class.to(device) for of_class in images]
    config = ImagesConfig(recipe="dc")
    return Engine(
        matching=MatchingConfig(real_batch=real, updates=1, steps=1, precision=precision),  # type: ignore[arg-type]
        images=config,
        bits_weight=0,
        schedule=Schedule(1000),
        seed=0,
        objective=build_objective(objective, distance=None, precision=getattr(torch, precision)),
        network=build_network(network or NetworkConfig(width=WIDTH), shape, classes).to(device),
        density=None,
        normalisation=Normalisation((0.5,) * shape[0], (0.25,) * shape[0]),
        real=images,
        synthetic=initial_set(config, images, range(classes), ipc, seed=0),
        class_count=classes,
        mesh=build_mesh(Alone()),
    )


def time_ours(dataset: str, ipc: int, precision: str, repeats: int) -> dict[str, list[float]]:
    """CPU-seconds of match steps and inner epochs, after one of each that is not counted."""
    quiet()
    made = engine(SHAPES[dataset], ipc, precision=precision)
    matches, epochs = [], []
    for step in range(repeats + 1):
        started = time.process_time()
        made.outer_step(step)
        matched = time.process_time()
        made.replicas[0].learner.train_on_synthetic_(made.synthetic.images().detach(), step, 1)
        matches.append(matched - started)
        epochs.append(time.process_time() - matched)
    return {"match": matches[1:], "epoch": epochs[1:]}


def ceiling() -> float:
    """GFLOP per CPU-second of one large float32 convolution, forward, on one thread: the best that a step could do."""
    images, weight = torch.randn(64, WIDTH, 14, 14), torch.randn(WIDTH, WIDTH, 3, 3)
    images, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (images, weight))
    best = float("inf")
    for _ in range(8):
        started = time.process_time()
        torch.nn.functional.conv2d(images, weight, padding=1)
        best = min(best, time.process_time() - started)
    return 64 * 2 * 14 * 14 * 9 * WIDTH**2 / best / 1e9


def gflop(shape: tuple[int, int, int], images: int) -> float:
    """Of the convolutions, forward and backward: all weight gradients, all input gradients but the first."""
    channels, side, _ = shape
    total = 0.0
    for level in range(3):
        inner = 2 * 9 * (channels if level == 0 else WIDTH) * WIDTH * (side >> level) ** 2
        total += inner * (2 if level == 0 else 3)
    return total * images / 1e9


def speed(out: Path, datasets: list[str], ipcs: list[int], repeats: int) -> None:
    """Adds a row for each dataset and images per class to `out`, and prints the table of all that it has."""
    for dataset in datasets:
        for ipc in ipcs:
            rows: dict[str, dict[str, list[float]]] = {}
            for _ in range(repeats):
                shape = SHAPES[dataset]
                found = {"reference": child("benchmarks.reference.dc", "--shape", *shape, "--ipc", ipc)}
                for precision in ("float32", "bfloat16"):
                    found[precision] = child(
                        "benchmarks.engine", "one", "--dataset", dataset, "--ipc", ipc, "--precision", precision
                    )
                for name, times in found.items():
                    kept = rows.setdefault(name, {"match": [], "epoch": []})
                    for part in kept:
                        kept[part] += times[part]
            row = {"dataset": dataset, "ipc": ipc, "ceiling_gflops": ceiling(), "seconds": rows}
            append(out, row)
    print("| | ipc | reference | float32 | bfloat16 | of the ceiling, float32 | inner epoch: reference | ours |")
    print("|---|---|---|---|---|---|---|---|")
    highest = max((row["ceiling_gflops"] for row in finished(out)), default=0)
    for row in finished(out):
        typical = {
            name: {part: statistics.median(times) for part, times in parts.items()}
            for name, parts in row["seconds"].items()
        }
        share = gflop(SHAPES[row["dataset"]], CLASSES * REAL) / typical["float32"]["match"] / highest
        epochs = [typical[name]["epoch"] for name in ("reference", "float32")]
        print(
            f"| {row['dataset']} | {row['ipc']} | {typical['reference']['match']:.2f} "
            f"| {beside_reference(row['seconds'], 'float32')} | {beside_reference(row['seconds'], 'bfloat16')} "
            f"| {share:.0%} | {epochs[0]:.3f} | {epochs[1]:.3f} |"
        )


def beside_reference(seconds: dict[str, dict[str, list[float]]], precision: str) -> str:
    """The median time of a match step; how many times as long the reference took, by repeat: median, least, most."""
    reference, ours = (seconds[name]["match"] for name in ("reference", precision))
    ratios = sorted(slow / fast for slow, fast in zip(reference, ours, strict=True))
    spread = f"{statistics.median(ratios):.1f}x; {ratios[0]:.1f} to {ratios[-1]:.1f}"
    return f"{statistics.median(ours):.2f} ({spread})"


def grown(classes: int, ipc: int) -> dict[str, float]:
    """MiB that a process grows by for its data, and then for an outer step."""
    torch.set_num_threads(1)
    made = engine((1, 16, 16), 1, classes=2, real=8, network=NetworkConfig(width=8, depth=2))
    made.outer_step(0)  # what PyTorch needs once
    start = peak()
    made = engine((1, 16, 16), ipc, classes=classes, real=16, network=NetworkConfig(width=8, depth=2))
    loaded = peak()
    made.outer_step(0)
    return {"classes": classes, "ipc": ipc, "data_mib": loaded - start, "step_mib": peak() - loaded}


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(out: Path, counts: list[int], ipcs: list[int]) -> None:
    """One process for each class count and images per class; the table."""
    for ipc in ipcs:
        for classes in counts:
            append(out, child("benchmarks.engine", "grown", "--classes", classes, "--ipc", ipc))
    print("| classes | ipc | data MiB | step MiB | step KiB a class |")
    print("|---|---|---|---|---|")
    for row in finished(out):
        per_class = 1024 * row["step_mib"] / row["classes"]
        print(f"| {row['classes']} | {row['ipc']} | {row['data_mib']:.0f} | {row['step_mib']:.0f} | {per_class:.0f} |")


def main() -> None:
    """Reads the arguments; `one` and `grown` are the processes that the others start."""
    parser = options(__doc__, rows=False)
    parser.add_argument(
        "--out", type=Path, help=f"file that rows are added to (default: {RESULTS.name}/engine-WHAT.jsonl)"
    )
    parser.add_argument("what", choices=["speed", "memory", "one", "grown"], help="one, grown: what these start")
    parser.add_argument("--datasets", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="of speed")
    parser.add_argument("--ipcs", type=int, nargs="+", default=[1, 10], help="images per class")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[10, 100, 300, 1000], help="numbers of classes, of memory"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds of speed, in each of which all ways take turns")
    parser.add_argument("--dataset", default="mnist", help=argparse.SUPPRESS)
    parser.add_argument("--ipc", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--classes", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    match arguments.what:
        case "speed":
            speed(
                arguments.out or RESULTS / "engine-speed.jsonl", arguments.datasets, arguments.ipcs, arguments.repeats
            )
        case "memory":
            memory(arguments.out or RESULTS / "engine-memory.jsonl", arguments.counts, arguments.ipcs)
        case "one":
            print(json.dumps(time_ours(arguments.dataset, arguments.ipc, arguments.precision, 1)))
        case "grown":
            print(json.dumps(grown(arguments.classes, arguments.ipc)))


if __name__ == "__main__":
    main()
