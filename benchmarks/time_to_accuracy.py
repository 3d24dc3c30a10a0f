"""CPU-seconds to an accuracy: the plain reference, and what ours needs to get as far.

    python -m benchmarks time-to-accuracy --out FILE --source parquet:FILE --ipc 1 --reference 20 \
        --steps 1 2 4 8 16 --seeds 0 1 2 --set key=value ...

The reference (benchmarks/reference/dc.py: one class at a time, float pixels, published schedule, 256 real images a
class) runs in a process of its own, whose allocator is left alone. Ours runs once for every number of outer steps, each
with its whole learning rate schedule. Both see the same train images, and their images (the reference's as float) are
judged by fresh learners of one recipe on validation images, never on the test split. CPU-seconds are those of the outer
steps, one thread. Every row is a line of FILE; what is there is not repeated; the table says the fewest
CPU-seconds with which ours is at least as accurate as the reference of the same seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import child, finished, options, run_missing, spread, table
from benchmarks.reference import dc
from condense.condensation.build import build_engine, build_evaluator, build_images
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.data.normalisation import normalisation_of
from condense.data.slices import load_held_out, load_slice
from condense.pixels import to_float
from condense.settings import resolve
from condense.workers.collective import Alone
from condense.workers.memory import keep_freed_memory
from condense.workers.mesh import build_mesh

CPU = torch.device("cpu")


class Task:
    """One dataset, images per class and seed: real images, and what judges sets."""

    def __init__(self, overrides: list[str]) -> None:
        self.config = resolve(RunConfig, None, ["bits_weight=0", "workers=0", *overrides])
        self.source, _ = open_checked(self.config)
        classes = range(len(self.source.class_names))
        self.real = load_slice(self.source, classes, Alone(), CPU)
        self.normalisation = normalisation_of(self.real, Alone())
        self.evaluator = build_evaluator(self.config, len(classes), self.normalisation)
        limit = self.config.evaluation.validation_images
        self.validation = load_held_out(self.source, "validation", classes, build_mesh(Alone()), CPU, limit=limit)

    def accuracy(self, images: Tensor) -> float:
        """Mean percent of learners trained on images (C, ipc, channels, H, W): uint8, or float on the scale of it."""
        labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
        learners = self.config.evaluation.learners
        judged = self.evaluator.evaluate(
            images.flatten(0, 1), labels, [self.validation], learners=learners, collective=Alone()
        )
        return judged.mean


def reference(task: Task, steps: int) -> dict[str, Any]:
    """The plain method for `steps` outer steps."""
    config = task.config
    torch.manual_seed(config.seed)
    real = [task.normalisation.apply(to_float(images)) for images in task.real]
    synthetic = torch.randn(len(real), config.images_per_class, *real[0].shape[1:], requires_grad=True)
    optimizer = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5)
    matches, epochs = config.matching.schedule(config.images_per_class)
    spent = time.process_time()
    for _ in range(steps):
        network = dc.ConvNet(tuple(real[0].shape[1:]), len(real), config.network.width)
        for match in range(matches):
            dc.match(network, real, synthetic, optimizer, 256)
            for _ in range(epochs if match + 1 < matches else 0):
                dc.train_epoch(network, synthetic)
    spent = time.process_time() - spent
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (task.normalisation.mean, task.normalisation.std))
    return {"cpu_seconds": spent, "accuracy": task.accuracy((synthetic.detach() * std + mean) * 255)}


def ours(task: Task, steps: int) -> dict[str, Any]:
    """The engine for `steps` outer steps."""
    keep_freed_memory()
    config = task.config.model_copy(update={"outer_steps": steps})
    synthetic = build_images(config, task.source, task.real, range(len(task.real)))
    engine = build_engine(config, len(task.real), task.real, task.normalisation, None, synthetic, build_mesh(Alone()))
    spent = time.process_time()
    for step in range(steps):
        engine.outer_step(step)
    spent = time.process_time() - spent
    return {"cpu_seconds": spent, "accuracy": task.accuracy(synthetic.images_uint8())}


def alone(arguments: argparse.Namespace, method: str, steps: int, seed: int) -> dict[str, Any]:
    """One run in a process of its own."""
    own = ("--steps", steps, "--ipc", arguments.ipc, "--source", arguments.source, "--seeds", seed)
    found: dict[str, Any] = child("benchmarks.time_to_accuracy", "--method", method, *own, "--set", *arguments.set)
    return found


def comparison(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each dataset and images per class, the reference and every number of steps of ours."""
    lines: list[tuple[object, ...]] = []
    for source, ipc in sorted({(row["source"], row["ipc"]) for row in rows}):
        own = [row for row in rows if (row["source"], row["ipc"]) == (source, ipc)]
        goals = {row["seed"]: row for row in own if row["method"] == "reference"}
        for method, steps in sorted({(row["method"], row["steps"]) for row in own}, reverse=True):
            these = [row for row in own if (row["method"], row["steps"]) == (method, steps)]
            accuracies = [row["accuracy"] for row in these]
            spent = statistics.mean(row["cpu_seconds"] for row in these)
            reached = sum(row["accuracy"] >= goals[row["seed"]]["accuracy"] for row in these if row["seed"] in goals)
            name = Path(source).stem + (", reference" if method == "reference" else "")
            as_accurate = "" if method == "reference" else f"{reached} of {len(these)}"
            lines.append((name, ipc, steps, f"{spent:.1f}", spread(accuracies, 2), as_accurate))
        ratios = []
        for seed, goal in goals.items():
            reaching = [
                row["cpu_seconds"]
                for row in own
                if (row["method"], row["seed"]) == ("ours", seed) and row["accuracy"] >= goal["accuracy"]
            ]
            ratios += [goal["cpu_seconds"] / min(reaching)] if reaching else []
        if ratios:
            told = ", ".join(f"{ratio:.0f}" for ratio in ratios)
            lines.append((Path(source).stem, ipc, "", "", "", f"**{told} times fewer CPU-seconds** by seed"))
    return table(("", "ipc", "outer steps", "CPU-seconds", "validation %", "as accurate as the reference"), lines)


def main() -> None:
    """Reads the arguments, runs what is missing, prints the table; with --method one run alone."""
    parser = options(__doc__, out="time-to-accuracy.jsonl", seeds=True, settings=True)
    parser.add_argument("--source", default="fashion-mnist", help="a source of `condense run`")
    parser.add_argument("--ipc", type=int, default=1, help="images per class")
    parser.add_argument("--reference", type=int, default=20, help="outer steps of the reference")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="outer steps of ours, a run each")
    parser.add_argument("--method", choices=["reference", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        torch.set_num_threads(1)
        own = [f"source={arguments.source}", f"images_per_class={arguments.ipc}", f"seed={arguments.seeds[0]}"]
        method = {"reference": reference, "ours": ours}[arguments.method]
        print(json.dumps(method(Task([*arguments.set, *own]), arguments.steps[0])))
        return
    ways = [("reference", arguments.reference), *(("ours", steps) for steps in arguments.steps)]
    common = {"source": arguments.source, "ipc": arguments.ipc, "settings": arguments.set}
    keys = [
        common | {"seed": seed, "method": method, "steps": steps} for seed in arguments.seeds for method, steps in ways
    ]
    run_missing(arguments.out, keys, lambda key: alone(arguments, key["method"], key["steps"], key["seed"]))
    print(comparison(finished(arguments.out)))


if __name__ == "__main__":
    main()
