"""What a warm start saves: runs that begin with the set of a neighbouring bits_weight, beside cold ones.

    python -m benchmarks warm-start --out FILE --seeds 0 1 2 --set source=parquet:FILE key=value ...

For each seed: one cold run for every weight, then, from each cold set, the runs of the other weights under every rule
(share of the outer steps, share of the image learning rate). Judged on validation images. Every finished run is a line
of FILE, and runs that are there already are not repeated (the cold sets stay in FILE-sets beside it). The
table is printed at the end: each warm run against the cold one of its weight and seed.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import append, condense_alone, finished, options, quiet, spread, table
from condense.condensation.config import RunConfig
from condense.settings import resolve
from condense.synthetic.dataset import CondensedDataset, write_dataset

EXAMPLE = Path("examples/fashion-mnist.yaml")
PAIRS = ((10.0, 20.0), (40.0, 10.0))  # bits_weight of the start, and of the run
RULES = ((0.5, 0.5), (0.25, 0.25))  # share of the outer steps, share of the rate


def row_of(made: CondensedDataset, values: dict[str, Any], cpu_seconds: float) -> dict[str, Any]:
    """A line of the results."""
    facts = made.provenance
    return {
        **values,
        "accuracy": facts["validation"]["accuracy_mean"],
        "bits_per_dim": facts["bits"]["per_dim_after"],
        "content_digest": facts["content_digest"],
        "cpu_seconds": cpu_seconds,
        "config": facts["config"],
        "git_revision": facts["git_revision"],
    }


def runs_of_seed(seed: int, overrides: list[str], results: Path) -> None:
    """Runs what is missing of one seed."""
    base = resolve(RunConfig, EXAMPLE, overrides)

    def one(values: dict[str, Any], *own: str) -> None:
        if known(values):
            return
        print(values, file=sys.stderr, flush=True)
        own = (f"seed={seed}", f"bits_weight={values['bits_weight']}", "evaluation.test=false", *own)
        config = resolve(RunConfig, EXAMPLE, [*overrides, *own])
        config = resolve(RunConfig, EXAMPLE, [*overrides, *own, f"evaluation.every={config.outer_steps}"])
        started = time.process_time()
        made = condense_alone(config)
        if values["start"] is None:
            write_dataset(sets / f"{values['bits_weight']}.parquet", made)
        append(results, row_of(made, values, time.process_time() - started))

    def known(values: dict[str, Any]) -> bool:
        return any({key: row[key] for key in values} == values for row in finished(results))

    sets = results.absolute().parent / f"{results.stem}-sets" / str(seed)
    cold = [
        {"seed": seed, "bits_weight": weight, "start": None, "steps": 1.0, "rate": 1.0}
        for weight in sorted({weight for pair in PAIRS for weight in pair})
    ]
    warm = [
        {"seed": seed, "bits_weight": weight, "start": start, "steps": steps, "rate": rate}
        for (start, weight), (steps, rate) in itertools.product(PAIRS, RULES)
    ]
    for values in cold:
        one(values)
    for values in warm:
        one(
            values,
            f"images.init=set:{sets}/{values['start']}.parquet",
            f"outer_steps={round(values['steps'] * base.outer_steps)}",
            f"images.learning_rate={values['rate'] * base.images.learning_rate}",
        )


def comparison(rows: list[dict[str, Any]]) -> str:
    """Markdown: differences to the cold run of the same weight and seed, mean and deviation over seeds."""
    cold = {(row["seed"], row["bits_weight"]): row for row in rows if row["start"] is None}
    lines = []
    for (start, weight), (steps, rate) in itertools.product(PAIRS, RULES):
        wanted = (start, weight, steps, rate)
        own = [row for row in rows if (row["start"], row["bits_weight"], row["steps"], row["rate"]) == wanted]
        own = [row for row in own if (row["seed"], weight) in cold]
        if not own:
            continue
        beside = [cold[row["seed"], weight] for row in own]
        points = [row["accuracy"] - other["accuracy"] for row, other in zip(own, beside, strict=True)]
        bits = [100 * (row["bits_per_dim"] / other["bits_per_dim"] - 1) for row, other in zip(own, beside, strict=True)]
        means = [statistics.mean(other[key] for other in beside) for key in ("accuracy", "bits_per_dim")]
        shown = (spread(points, sign="+"), f"{spread(bits, sign='+')} %", f"{means[0]:.1f} %, {means[1]:.2f}")
        lines.append((f"{start:g}, {weight:g}", f"{steps:g}, {rate:g}", *shown))
    return table(("from, to", "steps, rate", "accuracy, points", "bits", "cold: accuracy, bits per dim"), lines)


def main() -> None:
    """Reads the arguments, runs what is missing, prints the table."""
    arguments = options(__doc__, out="warm-start.jsonl", seeds=True, settings=True).parse_args()
    quiet()
    for seed in arguments.seeds:
        runs_of_seed(seed, arguments.set, arguments.out)
    print(comparison(finished(arguments.out)))


if __name__ == "__main__":
    main()
