"""Answers the events of Ray Tune in the driver: writes the journal, stops hopeless trials, shows the state."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler

from tuning.journal import Journal
from tuning.score import Point
from tuning.space import SearchConfig
from tuning.stopping import dominated_by

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

logger = logging.getLogger(__name__)


class EarlyStopper(FIFOScheduler):  # type: ignore[misc]
    """Trials in the order of their suggestion; every report goes to the journal, and may end its trial.

    Args:
        search: the search.
        journal: gets every point, result and failure.
        changed: called after each.
    """

    def __init__(self, search: SearchConfig, journal: Journal, changed: Callable[[], None]) -> None:
        super().__init__()
        self.search, self.journal, self.changed = search, journal, changed

    def on_trial_result(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        """Returns whether the trial goes on."""
        number = trial.config["number"]
        decision = self._decide(number, trial.config["config"], result)
        self.changed()
        return decision

    def _decide(self, number: int, config: dict[str, Any], result: dict[str, Any]) -> str:
        if self.journal.trials[number].over:  # Ray repeats the last report of a function that returned
            return str(FIFOScheduler.CONTINUE)
        if "result" in result:
            self.journal.finished(number, json.loads(result["result"]))
        elif "failed" in result:
            self.journal.failed(number, result["failed"])
        elif "step" in result:
            trial = self.journal.trials[number]
            ahead = 0 if trial.start is None else trial.start.ahead  # outer steps that its start has behind it
            step, total = int(result["step"]) + ahead, config["outer_steps"] + ahead
            self.journal.point(number, step, Point(result["accuracy"], result["bits"]))
            better = dominated_by(trial, step, total, self.journal.trials.values(), self.search.early_stopping)
            if better is not None:
                self.journal.stopped(number, f"dominated by trial {better.number} at outer step {step} of {total}")
                return str(FIFOScheduler.STOP)
        return str(FIFOScheduler.CONTINUE)


class TrialEvents(Callback):  # type: ignore[misc]
    """Starts, and ends of processes, as Ray sees them."""

    def __init__(self, journal: Journal, changed: Callable[[], None]) -> None:
        self.journal, self.changed = journal, changed

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """A process begins a trial."""
        self.journal.started(trial.config["number"])
        self.changed()

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """A process died too often."""
        self.journal.failed(trial.config["number"], _reason(trial))
        self.changed()


def _reason(trial: RayTrial) -> str:
    error = trial.get_pickled_error()
    lines = [
        line.strip() for line in str(error or trial.get_error() or "its process died").splitlines() if line.strip()
    ]
    return f"{type(error).__name__}: {' '.join(lines)[:500]}" if error else " ".join(lines)[:500]
