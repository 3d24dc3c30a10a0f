"""Says how much each field of the space decided, for accuracy and for bits.

It is Optuna's fANOVA, or a rank correlation where the trials are too few for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from tuning.journal import Journal
from tuning.samplers import study_of
from tuning.space import SearchConfig

ENOUGH = 16  # finished trials for fANOVA's forest; below that its shares change with its seed
OBJECTIVES = ("accuracy", "bits")


@dataclass(frozen=True)
class Importance:
    """By objective and field, in [0, 1]. `method` says how: shares of the variance, or strengths of a correlation."""

    method: str
    trials: int
    values: dict[str, dict[str, float]]

    @property
    def how(self) -> str:
        """The method and the number of trials in words, with a caution where they are few."""
        few = "" if self.trials >= ENOUGH else f": too few to tell fields apart, {ENOUGH} or more are asked for"
        return f"{self.method} of {self.trials} finished trials{few}"


def importance(search: SearchConfig, journal: Journal) -> Importance:
    """Returns what the finished trials say of every field.

    With at least `ENOUGH` of them, the shares of the variance in a random forest that single fields explain (fANOVA;
    Hutter, Hoos, Leyton-Brown 2014, as Optuna computes it); else |rank correlation|, and for a choice the root of the
    share of the ranks' variance that lies between its values. Fields that took one value only get 0.
    """
    finished = journal.by_status("finished")
    method = "fanova" if len(finished) >= ENOUGH else "rank correlation"
    found: dict[str, dict[str, float]] = {}
    for objective in OBJECTIVES:
        targets = [getattr(trial.point, objective) for trial in finished]
        varied = [key for key in search.space if len({repr(trial.params[key]) for trial in finished}) > 1]
        values = dict.fromkeys(search.space, 0.0)
        if len(set(targets)) > 1 and varied:
            if method == "fanova":
                values |= _fanova(search, journal, varied, OBJECTIVES.index(objective))
            else:
                for key in varied:
                    chosen = [trial.params[key] for trial in finished]
                    values[key] = _correlation(chosen, targets, ordered=search.space[key].choice is None)
        found[objective] = values
    return Importance(method, len(finished), found)


def _fanova(search: SearchConfig, journal: Journal, varied: Sequence[str], index: int) -> dict[str, float]:
    study = study_of(search.model_copy(update={"mode": "front", "kilobits": None, "accuracy": None}), journal)
    return optuna.importance.get_param_importances(
        study,
        evaluator=optuna.importance.FanovaImportanceEvaluator(seed=search.seed),
        params=list(varied),
        target=lambda trial: trial.values[index],
    )


def _correlation(chosen: Sequence[Any], targets: Sequence[float], *, ordered: bool) -> float:
    ranks = _ranks(targets)
    if ordered:
        return abs(float(np.corrcoef(_ranks(chosen), ranks)[0, 1]))
    names = np.array([repr(value) for value in chosen])
    between = sum((names == name).sum() * (ranks[names == name].mean() - ranks.mean()) ** 2 for name in set(names))
    return float(np.sqrt(between / ((ranks - ranks.mean()) ** 2).sum()))


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Returns ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return shared
