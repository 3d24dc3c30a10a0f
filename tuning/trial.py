"""Runs one trial, in a process that Ray Tune gives it.

A trial is a run as `condense run` makes it, but for the test split, which it never reads.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from cluster.run import Finished, TrialOf, run
from condense.condensation.config import RunConfig
from condense.condensation.loop import ACCURACY, BITS, STEP
from condense.data.sources import open_source
from condense.errors import CondenseError
from condense.files import write_whole
from condense.settings import validate
from condense.workers.context import Progress
from tuning.score import Point

logger = logging.getLogger(__name__)

FEWEST_BITS = 1.0  # of a set: an estimate of nearly none may fall below 0, and has no logarithm then

Report = Callable[[int, Point], None]  # (outer step, the set after it)
Objective = Callable[[int, dict[str, Any], Report], dict[str, Any]]  # (trial, run config, report) -> its result


@dataclass(frozen=True)
class CondenseTrial:
    """The objective of a search: condenses, and registers the set as a version.

    parent_run: the search's MLflow run. folder: where results of trials that are over are kept, one file each, so that
        a trial which is started again after its end only says what it had found.
    """

    parent_run: str
    folder: Path

    def __call__(self, number: int, values: dict[str, Any], report: Report) -> dict[str, Any]:
        """The result of a trial: accuracy, bits, and where its set is.

        Raises:
            CondenseError: as `cluster.run.run`.
        """
        config = validate(RunConfig, values, where=f"trial {number}")
        kept = self.folder / f"{config.identity()}.json"
        if kept.exists():
            return dict(json.loads(kept.read_text()))
        source = open_source(config.source, config.data, seed=config.seed)
        count = config.images_per_class * len(source.class_names)
        last = time.time()

        def progress(at: Progress) -> None:
            nonlocal last
            last = time.time()
            if ACCURACY in at.values:
                bits = count * math.prod(source.shape) * at.values[BITS]
                step = int(at.values.get(STEP, at.done))  # found beside training, it is of an earlier one
                report(step, Point(at.values[ACCURACY], max(FEWEST_BITS, bits)))

        result: dict[str, Any] = {}

        def keep(finished: Finished) -> None:
            result.update(_described(finished), computed=[last - finished.dataset.provenance["seconds"], last])
            write_whole(kept, json.dumps(result).encode())

        run(config, progress, trial_of=TrialOf(self.parent_run, number), keep=keep)
        return result


def _described(finished: Finished) -> dict[str, Any]:
    facts, version = finished.dataset.provenance, finished.version
    assert version is not None
    return {
        "accuracy": facts["validation"]["accuracy_mean"],
        "bits": max(FEWEST_BITS, facts["bits"]["per_set"]),
        "bits_per_dim": facts["bits"]["per_dim_after"],
        "images": len(finished.dataset.labels),
        "content_digest": facts["content_digest"],
        "version": version.version,
        "run_id": finished.run_id,
        "files_run_id": version.run_id,  # another's, where it had made the same images before
        "folder": str(finished.folder),
        "seconds": facts["seconds"],
    }


def tunable(objective: Objective) -> Callable[[dict[str, Any]], None]:
    """Returns an objective as the function that Ray Tune runs. A failure is a report too, so that the search goes on.

    Only a process that dies is an error to Ray, which then starts the trial again.
    """

    def trial(task: dict[str, Any]) -> None:
        def report(step: int, point: Point) -> None:
            tune.report({"step": step, "accuracy": point.accuracy, "bits": point.bits})

        try:
            result = objective(task["number"], task["config"], report)
        except CondenseError as error:
            tune.report({"failed": str(error)})
        except Exception as error:
            logger.exception("trial %d failed", task["number"])
            tune.report({"failed": f"{type(error).__name__}: {error}"})
        else:
            tune.report({"result": json.dumps(result)})

    return trial
