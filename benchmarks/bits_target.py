"""How near `bits_target` ends to its target, and what it loses against a fixed weight at the same bits.

    python -m benchmarks bits-target --out FILE --target 2.6 --seeds 0 1 2 --set source=parquet:FILE key=value ...
    python -m benchmarks bits-target --out FILE

For each seed: one run with the target, then runs with fixed weights a little below and above the one that it ended
with. The accuracy of a fixed weight at the very same bits is read on the line between these two, over the logarithm of
bits. Every finished run is a line of FILE, and runs that are there already are not repeated; one that is
interrupted goes on from its last checkpoint (its CPU-seconds are those of the last sitting). The second form prints the
table of what is there.

What real images ask of a network does not depend on the weight where the network is not trained on the synthetic set
(one match step, or matching.learner_training other than synthetic): all runs of a seed share it then, as in bits-curve.
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.bits_curve import SharedTargets
from benchmarks.harness import append, condense_alone, finished, options, quiet, spread, table
from condense.condensation import build as building
from condense.condensation.config import RunConfig
from condense.settings import resolve
from condense.workers.checkpoints import LocalCheckpoints
from condense.workers.context import Progress

EXAMPLE = Path("examples/fashion-mnist.yaml")
BESIDE = 1.25  # a fixed weight beside another: some 5 % of the bits away
MARGIN = 0.5  # points that may be lost


class AttemptTargets(SharedTargets):
    """As SharedTargets, told apart by the network and the real images: a run has several attempts, and may go on."""

    def target(self, network: nn.Module, real: Tensor, classes: Tensor) -> Any:
        """The kept target of this network and these images, or a new one."""
        key = hash((float(real.sum()), *(float(parameter.sum()) for parameter in network.parameters())))
        if key not in self.kept:
            self.kept[key] = self.inner.target(network, real, classes)
        return self.kept[key]


def one_run(config: RunConfig) -> dict[str, Any]:
    """Condenses once; the row of its result."""

    def progress(at: Progress) -> None:
        if at.done == at.total:
            print(f"  {at.stage} {at.done}/{at.total} {at.values}", file=sys.stderr, flush=True)

    started = time.process_time()
    keep = LocalCheckpoints(Path(tempfile.gettempdir()) / f"bits-target-{config.identity()}")
    facts = condense_alone(config, progress, checkpoints=keep).provenance
    keep.path.unlink(missing_ok=True)
    return {
        "images_per_class": config.images_per_class,
        "seed": config.seed,
        "bits_target": config.bits_target,
        "bits_weight": facts["bits"]["weight"],
        "attempts": facts["bits"]["attempts"],
        "bits_per_dim": facts["bits"]["per_dim_after"],
        "accuracies": facts["evaluation"]["accuracies"],
        "accuracy": facts["evaluation"]["accuracy_mean"],
        "content_digest": facts["content_digest"],
        "cpu_seconds": time.process_time() - started,
        "config": facts["config"],
        "flow": facts["flow"]["digest"][:12],
        "git_revision": facts["git_revision"],
    }


def runs_of_seed(target: float, seed: int, overrides: list[str], results: Path) -> None:
    """Runs what is missing of one seed."""
    kept: dict[int, Any] = {}

    def row(*own: str) -> dict[str, Any]:
        config = resolve(RunConfig, EXAMPLE, ["bits_weight=0", *overrides, f"seed={seed}", *own])
        values = config.as_dict()
        known = [each for each in finished(results) if each["config"] == values]  # type: ignore[comparison-overlap]
        if known:
            return known[0]
        print(f"seed {seed} {own}", file=sys.stderr, flush=True)
        steps, _ = config.matching.schedule(config.images_per_class)
        if steps == 1 or config.matching.learner_training != "synthetic":
            building.build_objective = functools.partial(AttemptTargets, kept)  # type: ignore[assignment]
        made = one_run(config)
        append(results, made)
        return made

    weight = row(f"bits_target={target}")["bits_weight"]
    for factor in (1 / BESIDE, BESIDE):
        row(f"bits_weight={weight * factor!r}")


def comparison(rows: list[dict[str, Any]]) -> str:
    """Markdown: each run with a target beside the fixed weights around it, and the mean loss by images per class."""
    lines, verdicts = [], []
    lost: dict[tuple[int, float], list[float]] = {}
    fixed = [row for row in rows if row["bits_target"] is None]
    for row in sorted((r for r in rows if r["bits_target"]), key=lambda r: (r["images_per_class"], r["bits_target"])):
        ipc, seed, target, bits = (row[key] for key in ("images_per_class", "seed", "bits_target", "bits_per_dim"))
        context = [
            other
            for other in fixed
            if (other["images_per_class"], other["seed"]) == (ipc, seed)
            and abs(abs(math.log(other["bits_weight"] / row["bits_weight"])) - math.log(BESIDE)) < 1e-6
        ]
        if len(context) < 2:
            continue
        low, high = sorted(context, key=lambda other: other["bits_per_dim"])
        span = math.log(high["bits_per_dim"] / low["bits_per_dim"])
        part = math.log(bits / low["bits_per_dim"]) / span
        same = low["accuracy"] + part * (high["accuracy"] - low["accuracy"])
        lost.setdefault((ipc, target), []).append(same - row["accuracy"])
        beside = "; ".join(f"{other['bits_per_dim']:.3f}, {other['accuracy']:.2f}" for other in (low, high))
        ended = f"{bits:.3f} ({100 * (bits / target - 1):+.1f} %)"
        judged = (spread(row["accuracies"], 2), beside, f"{same:.2f}", f"{same - row['accuracy']:+.2f}")
        lines.append((ipc, seed, f"{target:g}", ended, len(row["attempts"]), *judged))
    for (ipc, target), values in lost.items():
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        mean = statistics.mean(values)
        verdict = "within" if mean <= MARGIN else "beyond"
        verdicts.append(f"\nipc {ipc} at {target:g}: {mean:+.2f} ± {error:.2f} points lost ({verdict} {MARGIN})")
    columns = ("ipc", "seed", "target", "ended at", "attempts", "test %", "fixed: bits, %", "same bits %", "lost")
    return "\n".join([table(columns, lines), *verdicts])


def main() -> None:
    """Reads the arguments, runs what is missing, prints the table."""
    parser = options(__doc__, out="bits-target.jsonl", seeds=True, settings=True)
    parser.add_argument(
        "--target", type=float, nargs="*", default=[], help="bits per dim; without it the table is printed"
    )
    arguments = parser.parse_args()
    quiet()
    for seed in arguments.seeds:
        for target in arguments.target:
            runs_of_seed(target, seed, arguments.set, arguments.out)
    print(comparison(finished(arguments.out)))


if __name__ == "__main__":
    main()
