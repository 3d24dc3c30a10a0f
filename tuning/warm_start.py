"""Starts a trial from the images of a finished one whose bits_weight is near, so that it needs fewer outer steps.

The run is a plain one, and its config says everything: `images.init` and its digest, the steps that are left, and the
lower rate at which they begin. At the full rate the first steps would undo what the set has learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from condense.condensation.config import RunConfig
from condense.synthetic.config import FROM_SET
from condense.synthetic.dataset import PARQUET
from tuning.journal import Start, Trial
from tuning.space import SearchConfig

# Fields of a set's own that its images depend on; they are equal in all trials unless the space has them.
KIND = ("images_per_class", "images.factor")
LEAST = 1e-3  # a bits_weight below it counts as this much


def nearest_start(search: SearchConfig, chosen: RunConfig, finished: Iterable[Trial]) -> Start | None:
    """Returns what a new trial starts from: the nearest set by bits_weight, if one is near; None without warm starts.

    Args:
        chosen: the trial's run if it starts cold.
        finished: trials with their results.
    """
    rule = search.warm_start
    if rule is None:
        return None
    near = [
        (abs(math.log(max(LEAST, trial.params["bits_weight"]) / max(LEAST, chosen.bits_weight))), trial.number, trial)
        for trial in finished
        if "content_digest" in trial.result
        and all(trial.params[key] == value for key, value in _kind(search, chosen).items())
    ]
    distance, _, trial = min(near, default=(math.inf, 0, None))
    if trial is None or distance > math.log(rule.within):
        return None
    file = str(Path(trial.result["folder"]) / PARQUET)
    left = max(1, round(rule.steps * chosen.outer_steps))
    return Start(trial.number, file, trial.result["content_digest"], chosen.outer_steps - left)


def apply_warm_start(search: SearchConfig, chosen: RunConfig, start: Start | None) -> RunConfig:
    """Returns the run of a trial that starts so."""
    if start is None or search.warm_start is None:
        return chosen
    images = chosen.images.model_copy(
        update={
            "init": f"{FROM_SET}{start.file}",
            "init_digest": start.digest,
            "learning_rate": search.warm_start.rate * chosen.images.learning_rate,
        }
    )
    return chosen.model_copy(update={"images": images, "outer_steps": chosen.outer_steps - start.ahead})


def _kind(search: SearchConfig, chosen: RunConfig) -> dict[str, int]:
    values = {"images_per_class": chosen.images_per_class, "images.factor": chosen.images.factor}
    return {key: values[key] for key in KIND if key in search.space}
