"""What evaluating beside training saves: the quickstart evaluated both ways.

    python -m benchmarks evaluation-process --out benchmarks/results/beside.jsonl  # two idle cores; five minutes
    python -m benchmarks evaluation-process --tiny                                  # does it work?
    python -m benchmarks evaluation-process --read benchmarks/results/beside.jsonl  # the table of rows taken before

One line a run: seconds of the optimisation (from the end of the first outer step to the last accuracy), of the whole
run without the test split, and the accuracies, which have to be the same both ways; then the medians and their ratio.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.harness import ROOT, condense_alone, finished, options, quiet, table, tell
from condense.condensation.config import RunConfig
from condense.settings import resolve
from condense.workers.context import Progress
from condense.workers.tracking import RecordingTracker

STEPS, COUNTS = 60, (5, 20)
TINY = ("outer_steps=20", "bits_weight=0", "data.image_size=16", "network.width=8", "matching.real_batch=8")


def measure(count: int, beside: bool, settings: tuple[str, ...]) -> dict[str, Any]:
    """One run with so many evaluations."""
    marks: list[float] = []

    def progress(at: Progress) -> None:
        if at.stage.startswith("condensing"):
            marks.append(time.perf_counter())

    common = ("workers=0", "evaluation.test=false", f"outer_steps={STEPS}", *settings)
    config = resolve(RunConfig, ROOT / "examples" / "quickstart.yaml", common)
    own = (f"evaluation.every={config.outer_steps // count}", f"evaluation.beside={str(beside).lower()}")
    config = resolve(RunConfig, ROOT / "examples" / "quickstart.yaml", (*common, *own))
    tracker = RecordingTracker()
    made = condense_alone(config, progress, tracker=tracker)
    return {
        "evaluations": count,
        "beside": beside,
        "optimisation_s": round(marks[-1] - marks[0], 2),
        "steps_s": round(sum(made.provenance["seconds_by_part"].values()), 2),
        "run_s": round(made.provenance["seconds"], 2),
        "accuracies": [accuracy for _, accuracy in tracker.rows["validation/accuracy"]],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The medians and what they say."""
    lines = []
    for count in sorted({row["evaluations"] for row in rows}):
        ways = [[row for row in rows if (row["evaluations"], row["beside"]) == (count, way)] for way in (False, True)]
        took, whole = (
            [statistics.median(row[key] for row in way) for way in ways] for key in ("optimisation_s", "run_s")
        )
        same = len({tuple(row["accuracies"]) for way in ways for row in way}) == 1
        numbers = (f"{took[0]:.1f}", f"{took[1]:.1f}", f"{took[1] / took[0]:.2f}", f"{whole[1] / whole[0]:.2f}")
        lines.append((count, *numbers, "yes" if same else "no"))
    print(table(("evaluations", "in training, s", "beside, s", "ratio", "whole run: ratio", "same accuracies"), lines))


def main() -> None:
    arguments = options(__doc__, repeats=2, settings=True).parse_args()
    if arguments.read:
        show(finished(arguments.read))
        return
    quiet()
    settings = (*(TINY if arguments.tiny else ()), *arguments.set)
    measure(1, False, (*settings, "outer_steps=2"))  # a process's first run also warms up
    rows = []
    for _ in range(1 if arguments.tiny else arguments.repeats):
        for count in COUNTS:
            for beside in (False, True):  # in turn, so that a busy minute strikes both
                rows.append(measure(count, beside, settings))
                tell(arguments.out, rows[-1])
    show(rows)


if __name__ == "__main__":
    main()
