"""Decides whether a trial is stopped: the front at the same outer step is better by a margin.

The bits of a set fall and its accuracy rises during a run. So trials are compared at the same step only.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuning.journal import Trial
from tuning.score import Point, dominates
from tuning.space import EarlyStopping


def dominated_by(
    trial: Trial, step: int, total: int, others: Iterable[Trial], rule: EarlyStopping | None
) -> Trial | None:
    """Returns the trial for which this one is to be stopped after outer step `step` of `total`, or None.

    Never in the grace period, and never at the last step, when nothing is left to save.
    """
    if rule is None or step < rule.grace * total or step >= total:
        return None
    point: Point = trial.points[step]
    for other in others:
        beside = other.points.get(step)
        if other is not trial and beside is not None and dominates(beside, point, margin=rule.margin):
            return other
    return None
