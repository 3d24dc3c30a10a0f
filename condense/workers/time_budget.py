"""Says how much of a job's time budget is left, and when a job is evaluated.

    time for more steps = budget - elapsed - evaluations still to come - the end

The seconds are measured in the job itself, and all workers go by the first one's clock. The end of a job (its last
tests, and writing) is stated in evaluations: by how much longer it takes than one of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from condense.errors import ConfigError
from condense.workers.checkpoints import Checkpoint, State
from condense.workers.collective import Collective

MARGIN = 1.2  # of the end: what no evaluation has, such as measuring bits and writing
_PREFIX = "pace."


def parse_duration(text: str) -> float:
    """Returns the seconds of a time such as 90s, 10m, 1h30m or 600 (seconds).

    Raises:
        ConfigError: the text is no time, or a time of zero.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ConfigError(f"{text!r} is no time to work with", "write it as in 90s, 10m or 1h30m")
    return float(total)


class TimeLeft(NamedTuple):
    """The seconds that are left for more steps, and the pace so far: `steps` took `spent` seconds."""

    seconds: float
    spent: float
    steps: int


class TimeBudget:
    """The clock of one job on one worker.

    Attributes:
        elapsed: seconds since the job began, earlier sittings included, as the first worker measured them.
        evaluations: how many have been made.
    """

    def __init__(
        self,
        budget_s: float | None,
        *,
        started: float,
        evaluations: int,
        every: int,
        ending: float,
        collective: Collective,
        device: torch.device,
    ) -> None:
        """
        Args:
            budget_s: seconds for the whole job; None sets no limit.
            started: when the job began, by `time.perf_counter`.
            evaluations: how many the job makes, evenly over its time, where `every` is 0.
            every: steps between two evaluations; 0 only with a budget.
            ending: what the end of the job takes, in evaluations.
            collective: the workers.
            device: of the collective's tensors.
        """
        self.budget_s, self.every, self.ending = budget_s, every, ending
        self.collective, self.device = collective, device
        self.began, self.planned = started, evaluations
        self.steps, self.step_s = -1, 0.0  # a process's first step also warms up: it does not count
        self.evaluations, self.evaluation_s = 0, 0.0  # how many; what the latest took
        self.elapsed = 0.0

    @contextmanager
    def time_step(self) -> Iterator[None]:
        """Times the enclosed step."""
        started = time.perf_counter()
        yield
        self.steps += 1
        self.step_s += (time.perf_counter() - started) if self.steps else 0.0

    @contextmanager
    def time_evaluation(self) -> Iterator[None]:
        """Times the enclosed evaluation."""
        started = time.perf_counter()
        yield
        self.evaluations += 1
        self.evaluation_s = time.perf_counter() - started

    def left(self) -> TimeLeft | None:
        """Returns the time for more steps, alike on all workers; None without a budget and before the second step.

        All workers call it after every step.
        """
        if self.budget_s is None:
            return None
        measured = [time.perf_counter() - self.began, self.step_s, self.evaluation_s]
        own = torch.tensor(measured, dtype=torch.float64, device=self.device)
        first = self.collective.sum_(own if self.collective.rank == 0 else torch.zeros_like(own))
        self.elapsed, step_s, evaluation_s = first.tolist()
        if self.steps < 1:
            return None
        to_come = max(1, self.planned - self.evaluations)
        seconds = self.budget_s - self.elapsed - evaluation_s * (to_come + MARGIN * self.ending)
        return TimeLeft(seconds, step_s, self.steps)

    def evaluation_due(self, done: int, total: int) -> bool:
        """Returns whether the job is evaluated after `done` of `total` steps."""
        if done == total:
            return True
        if self.every or self.budget_s is None:
            return done % self.every == 0
        if self.evaluations == 0:
            return done > 1  # soon, to know what one takes
        return self.elapsed >= self.evaluations * self.budget_s / self.planned

    def state(self) -> State:
        """Returns what a checkpoint keeps: the time that was used."""
        if self.budget_s is None:
            return State()
        values = {"elapsed": self.elapsed, "evaluations": self.evaluations, "evaluation_s": self.evaluation_s}
        return State(scalars={_PREFIX + name: float(value) for name, value in values.items()})

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over what `state` gave, if it is there: the time of earlier sittings is used up."""
        scalars = checkpoint.scalars
        if _PREFIX + "elapsed" in scalars:
            self.began -= scalars[_PREFIX + "elapsed"]
            self.evaluations = int(scalars[_PREFIX + "evaluations"])
            self.evaluation_s = scalars[_PREFIX + "evaluation_s"]
