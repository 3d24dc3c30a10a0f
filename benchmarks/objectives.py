"""Accuracy against bits for each objective, and many simple images against few detailed ones.

    python -m benchmarks objectives --out FILE --data FOLDER --sets fashion:1 fashion:10 cifar:1 --seeds 0 1 2
    python -m benchmarks objectives --out FILE --data FOLDER --sets fashion:2 fashion:4 --objectives distribution

A set is a dataset and its images per class; each objective runs with several weights of the bits. All of one set have
the same number of image updates, start at real images and are judged by one recipe (`dc`, two learners of width 64, as
they are condensed with; the test split is read once a run). The images' rate, 0.1 for one image per class and 0.05 for
more, was not searched. FOLDER holds {fashion_mnist,cifar10}_{train,test}.parquet. What is in FILE is not
repeated. Prints each curve, the bits saved where one point of accuracy is lost (between the two weights around it, on
the line between them), and what a number of bits for the whole set buys.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bits_curve import one_run
from benchmarks.harness import finished, options, quiet, run_missing, table
from condense.condensation.config import RunConfig
from condense.settings import resolve

FILES = {"fashion": "fashion_mnist_train.parquet", "cifar": "cifar10_train.parquet"}
JUDGED = [
    "workers=0",
    "network.width=64",
    "data.image_size=32",
    "matching.precision=bfloat16",
    "matching.real_batch=64",
    "evaluation.recipe=dc",
    "evaluation.learners=2",
    "evaluation.validation_images=500",
    "evaluation.controls=false",
]
# Settings, and weights: distances of embeddings are about a tenth of those of gradients.
OBJECTIVES: dict[str, tuple[list[str], list[float]]] = {
    "gradient": (["images.init=real"], [0, 2, 10, 40, 150]),
    "gradient, augmented": (["images.init=real", "matching.augment=dsa"], [0, 2, 10, 40, 150]),
    "gradient, factor 2": (["images.init=tiles", "images.factor=2"], [0, 2, 10, 40, 150]),
    "distribution": (["objective=distribution", "images.init=real"], [0, 0.1, 0.4, 1.6, 6.4, 25.6, 102.4]),
    "distribution, mmd": (
        ["objective=distribution", "images.init=real", "matching.distance=mmd"],
        [0, 0.1, 0.4, 1.6, 6.4, 25.6, 102.4],
    ),
}
UPDATES = {1: 150}  # of the images; where there are more of them, MORE_UPDATES
MORE_UPDATES = 200


def settings(dataset: str, ipc: int, objective: str, data: Path) -> list[str]:
    """Overrides of one run but for its weight and seed."""
    own, _ = OBJECTIVES[objective]
    updates = UPDATES.get(ipc, MORE_UPDATES)
    found = [f"source=parquet:{data / FILES[dataset]}", f"images_per_class={ipc}", *JUDGED, *own]
    found.append(f"images.learning_rate={0.1 if ipc == 1 else 0.05}")
    if "objective=distribution" in own:
        steps = updates
        found += ["matching.updates=1"]
    elif ipc == 1:
        steps = updates // 5  # five updates for each network and real batch
    else:
        steps = updates // 25  # five states of each network, trained on real images in between
        found += ["matching.steps=5", "matching.learner_training=real", "matching.learner_images=256"]
    return [*found, f"outer_steps={steps}", f"evaluation.every={steps}"]


Point = tuple[float, float]  # bits per dim, percent


def curve(rows: Sequence[dict[str, Any]]) -> list[tuple[float, list[dict[str, Any]], Point]]:
    """Of one set and objective: weight, its rows, and the mean of its seeds."""
    found = []
    for weight in sorted({row["bits_weight"] for row in rows}):
        own = [row for row in rows if row["bits_weight"] == weight]
        point = statistics.mean(row["bits_per_dim"] for row in own), statistics.mean(row["accuracy"] for row in own)
        found.append((weight, own, point))
    return found


def bits_at(points: Sequence[Point], accuracy: float) -> float | None:
    """Bits at which the line through the points, from no weight on, falls to an accuracy; None where it never does."""
    for (bits, above), (fewer, below) in itertools.pairwise(points):
        if above >= accuracy > below:
            return bits + (fewer - bits) * (above - accuracy) / (above - below)
    return None


def accuracy_at(points: Sequence[Point], bits: float) -> float | None:
    """Percent of the line through the points at these bits; None outside of it."""
    for (more, first), (fewer, second) in itertools.pairwise(points):
        if more >= bits >= fewer:
            return second if more == fewer else second + (first - second) * (bits - fewer) / (more - fewer)
    return None


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of all that is there."""
    lines: list[Sequence[object]] = []
    whole: dict[str, dict[tuple[int, str], list[Point]]] = {}
    for dataset, ipc, objective in sorted({(row["dataset"], row["ipc"], row["objective"]) for row in rows}):
        own = [row for row in rows if (row["dataset"], row["ipc"], row["objective"]) == (dataset, ipc, objective)]
        found = curve(own)
        cells = []
        for weight, of_seeds, (bits, accuracy) in found:
            spread = statistics.pstdev(row["accuracy"] for row in of_seeds)
            cells.append(f"{weight:g}: {accuracy:.1f} ± {spread:.1f}, {bits:.2f}")
        points = [point for _, _, point in found]
        at = bits_at(points, points[0][1] - 1)
        share = "less lost" if at is None else f"{1 - at / points[0][0]:.0%}"
        seeds = min(len(of_seeds) for _, of_seeds, _ in found)
        seconds = statistics.mean(row["cpu_seconds"] for row in own)
        lines.append((dataset, ipc, objective, seeds, "; ".join(cells), share, f"{seconds:.0f}"))
        scaled = [(bits * own[0]["dims"] / 1000, accuracy) for bits, accuracy in points]
        whole.setdefault(dataset, {})[ipc, objective] = scaled
    equal: list[Sequence[object]] = []
    for dataset, curves in whole.items():
        for objective in sorted({objective for _, objective in curves}):
            of_ipc = {ipc: points for (ipc, name), points in curves.items() if name == objective}
            for kilobits in (25, 50, 65, 110, 235, 400):
                bought = [(ipc, accuracy_at(points, kilobits)) for ipc, points in sorted(of_ipc.items())]
                cells = [f"{ipc}: {accuracy:.1f}" for ipc, accuracy in bought if accuracy is not None]
                if len(cells) > 1:
                    equal.append((dataset, objective, kilobits, ", ".join(cells)))
    columns = (
        "",
        "ipc",
        "objective",
        "seeds",
        "bits_weight: test %, bits per dim",
        "bits saved at a point lost",
        "CPU-s",
    )
    beside = ("", "objective", "kilobits of the whole set", "test % by images per class")
    return f"{table(columns, lines)}\n\n{table(beside, equal)}"


def main() -> None:
    """Reads the arguments, runs what is missing, prints the tables."""
    parser = options(__doc__, out="objectives.jsonl", data=True, seeds=True)
    parser.add_argument("--sets", nargs="*", default=[], metavar="DATASET:IPC", help="fashion:1, cifar:10, ...")
    parser.add_argument(
        "--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES), help="default: all"
    )
    arguments = parser.parse_args()
    quiet()
    keys = []
    for seed, of_set, objective in itertools.product(arguments.seeds, arguments.sets, arguments.objectives):
        dataset, ipc = of_set.split(":")
        one = {"dataset": dataset, "ipc": int(ipc), "objective": objective, "seed": seed}
        keys += [one | {"bits_weight": weight} for weight in OBJECTIVES[objective][1]]

    def measure(key: dict[str, Any]) -> dict[str, Any]:
        own = settings(key["dataset"], key["ipc"], key["objective"], arguments.data)
        own += [f"bits_weight={key['bits_weight']}", f"seed={key['seed']}"]
        dims = key["ipc"] * 10 * 32 * 32 * (3 if key["dataset"] == "cifar" else 1)
        return one_run(resolve(RunConfig, None, own)) | {"dims": dims}

    run_missing(arguments.out, keys, measure)
    print(tables(finished(arguments.out)))


if __name__ == "__main__":
    main()
