"""Accuracy against bits: one run for each bits_weight and seed.

    python -m benchmarks bits-curve --config CONFIG --out FILE --weights 0 2 10 40 --set key=value ...

CONFIG is a run config (examples/fashion-mnist.yaml); key=value are its overrides, such as source=parquet:FILE. Each
finished run is a line of FILE; runs that are there already are not repeated, so the command goes on where it
was stopped, and several processes may share the seeds. The table is printed at the end.

What real images ask of a network does not depend on bits_weight, so the runs of one seed share it: only the first of
them computes it (its targets stay in memory, 13 MB an outer step), and only its CPU-seconds are those of a whole run.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import condense_alone, finished, options, quiet, run_missing, spread, table
from condense.condensation import build as building
from condense.condensation.config import RunConfig
from condense.matching.objectives import build_objective
from condense.settings import resolve
from condense.workers.context import Progress

KEYS = ("accuracy", "bits_per_dim", "png_bytes")


class SharedTargets:
    """An objective whose targets are kept, by the number of the call, in a dict that several runs share."""

    def __init__(self, kept: dict[int, Any], name: str, **options: Any) -> None:
        self.kept, self.calls, self.inner = kept, 0, build_objective(name, **options)
        self.fresh_network = self.inner.fresh_network

    def target(self, network: nn.Module, real: Tensor, classes: Tensor) -> Any:
        """The kept target of this call, or a new one."""
        self.calls += 1
        if self.calls not in self.kept:
            self.kept[self.calls] = self.inner.target(network, real, classes)
        return self.kept[self.calls]

    def distances(self, network: nn.Module, target: Any, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Those of the objective."""
        return self.inner.distances(network, target, synthetic, classes)


def one_run(config: RunConfig) -> dict[str, float | str]:
    """Condenses once; the row of its result."""

    def progress(at: Progress) -> None:
        if at.done == at.total or at.done % 20 == 0:
            print(f"  {at.stage} {at.done}/{at.total}", file=sys.stderr, flush=True)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    started, cpu = time.perf_counter(), time.process_time()
    facts = condense_alone(config, progress, device=device).provenance
    return {
        "bits_weight": config.bits_weight,
        "seed": config.seed,
        "accuracy": facts["evaluation"]["accuracy_mean"],
        "accuracy_std": facts["evaluation"]["accuracy_std"],
        "validation_accuracy": facts["validation"]["accuracy_mean"],
        "bits_per_dim": facts["bits"]["per_dim_after"],
        "bits_per_dim_real": facts["bits"]["per_dim_before"],
        "png_bytes": facts["bits"]["png_bytes"],
        "outer_steps": facts["outer_steps"],
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "flow": (facts["flow"] or {"digest": ""})["digest"][:12],
        "git_revision": facts["git_revision"],
    }


def curve(rows: list[dict[str, float]]) -> str:
    """Markdown: mean and standard deviation over seeds for each weight."""
    lines = []
    for weight in sorted({row["bits_weight"] for row in rows}):
        own = [row for row in rows if row["bits_weight"] == weight]
        found = [[row[key] for row in own if row[key] is not None] for key in KEYS]
        cells = [spread(values, places) if values else "-" for values, places in zip(found, (2, 3, 0), strict=True)]
        seconds = statistics.mean(row["cpu_seconds"] for row in own)
        lines.append((f"{weight:g}", len(own), *cells, f"{seconds:.0f}"))
    return table(("bits_weight", "seeds", "test accuracy %", "bits per dim", "PNG bytes", "CPU-s"), lines)


def main() -> None:
    """Reads the arguments, runs what is missing, prints the table."""
    parser = options(__doc__, out="fashion-mnist-ipc1.jsonl", seeds=True, settings=True)
    parser.add_argument("--config", type=Path, required=True, help="a run config, such as examples/fashion-mnist.yaml")
    parser.add_argument("--weights", type=float, nargs="+", required=True, help="values of bits_weight")
    arguments = parser.parse_args()
    quiet()
    targets: dict[int, dict[int, Any]] = {}

    def measure(key: dict[str, Any]) -> dict[str, Any]:
        seed = key["seed"]
        shared = targets.setdefault(seed, {})
        for other in targets.keys() - {seed}:
            del targets[other]
        building.build_objective = functools.partial(SharedTargets, shared)  # type: ignore[assignment]
        own = [*arguments.set, f"bits_weight={key['bits_weight']}", f"seed={seed}"]
        return one_run(resolve(RunConfig, arguments.config, own))

    chosen = itertools.product(arguments.seeds, arguments.weights)
    run_missing(arguments.out, [{"bits_weight": weight, "seed": seed} for seed, weight in chosen], measure)
    print(curve(finished(arguments.out)))


if __name__ == "__main__":
    main()
