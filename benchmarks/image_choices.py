"""What single settings of the images do to accuracy and bits.

    python -m benchmarks image-choices --out FILE --data FOLDER
    python -m benchmarks image-choices --out FILE --data FOLDER --sets replicas patience

One run a choice and seed on Fashion-MNIST, each with everything else as `benchmarks.objectives` has it: width 64, 150
image updates (200 with ten images per class); recipe `dc`, two learners. Replicas cost as many times as much, so they
have as many times fewer steps. What is in FILE is not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.bits_curve import one_run
from benchmarks.harness import finished, options, quiet, run_missing, spread, table
from benchmarks.objectives import settings
from condense.condensation.config import RunConfig
from condense.settings import resolve

BITS = "bits_weight=10"
EVERY_TWO = "evaluation.every=2"


def sigmoid(*weights: float) -> dict[str, list[str]]:
    """Choices along the curve of bits, beside those of benchmarks.objectives, whose bound is clamp, the default."""
    return {f"sigmoid, bits_weight {w:g}": ["images.bound=sigmoid", f"bits_weight={w:g}"] for w in weights}


# Of each set: dataset, images per class, objective, and the choices.
SETS: dict[str, tuple[str, int, str, dict[str, list[str]]]] = {
    "parameterisation": (
        "fashion",
        1,
        "gradient",
        {
            "pixels": [BITS, "images.parameterisation=pixels"],
            "pyramid (default)": [BITS, "images.parameterisation=pyramid"],
            "pyramid, factor 2": [BITS, "images.init=tiles", "images.factor=2"],
            "pyramid, bound sigmoid": [BITS, "images.bound=sigmoid"],
            "pyramid, constant rate": [BITS, "images.schedule=constant"],
            "pyramid, constant rate, averaged 0.95": [BITS, "images.schedule=constant", "images.averaging=0.95"],
            "pyramid, averaged 0.95": [BITS, "images.averaging=0.95"],
        },
    ),
    "bound": ("fashion", 1, "gradient", sigmoid(0, 2, 10, 40)),
    "bound, CIFAR-10": ("cifar", 1, "gradient", sigmoid(0, 2, 10, 40)),
    "bound, ten images per class": ("fashion", 10, "distribution", sigmoid(0.1, 0.4, 1.6, 6.4)),
    "replicas": (
        "fashion",
        1,
        "gradient",
        {
            "1 network, 30 steps": [BITS],
            "2 networks, 15 steps": [BITS, "replicas=2", "outer_steps=15", "evaluation.every=15"],
            "2 networks, 15 steps, rate 0.14": [
                BITS,
                "replicas=2",
                "outer_steps=15",
                "evaluation.every=15",
                "images.learning_rate=0.14",
            ],
        },
    ),
    "replicas, ten images per class": (
        "fashion",
        10,
        "distribution",
        {
            "1 network, 200 steps": ["bits_weight=0.4"],
            "2 networks, 100 steps": ["bits_weight=0.4", "replicas=2", "outer_steps=100", "evaluation.every=100"],
        },
    ),
    "patience": (
        "fashion",
        1,
        "gradient",
        {
            "60 steps": [BITS, "outer_steps=60", "evaluation.every=60"],
            "60 steps, patience 3": [BITS, "outer_steps=60", EVERY_TWO, "evaluation.patience=3"],
            "60 steps, patience 6": [BITS, "outer_steps=60", EVERY_TWO, "evaluation.patience=6"],
        },
    ),
}


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: means and standard deviations over seeds."""
    lines = []
    for name, choice in dict.fromkeys((row["set"], row["choice"]) for row in rows):
        own = [row for row in rows if (row["set"], row["choice"]) == (name, choice)]
        kinds = (("accuracy", 1), ("bits_per_dim", 2), ("outer_steps", 0), ("cpu_seconds", 0))
        cells = [spread([row[key] for row in own], places) for key, places in kinds]
        lines.append((name, choice, len(own), *cells))
    return table(("", "", "seeds", "test %", "bits per dim", "outer steps", "CPU-s in all"), lines)


def main() -> None:
    """Reads the arguments, runs what is missing, prints the table."""
    parser = options(__doc__, out="choices.jsonl", data=True, seeds=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS), help="default: all")
    arguments = parser.parse_args()
    quiet()
    keys = [
        {"set": name, "choice": choice, "seed": seed}
        for name in arguments.sets
        for seed in arguments.seeds
        for choice in SETS[name][3]
    ]

    def measure(key: dict[str, Any]) -> dict[str, Any]:
        dataset, ipc, objective, choices = SETS[key["set"]]
        own = [*settings(dataset, ipc, objective, arguments.data), *choices[key["choice"]], f"seed={key['seed']}"]
        return one_run(resolve(RunConfig, None, own))

    run_missing(arguments.out, keys, measure)
    print(comparison(finished(arguments.out)))


if __name__ == "__main__":
    main()
