"""When a run is evaluated, and, where it has a time budget, the clock that says how many outer steps fit in.

    outer steps left = (budget - elapsed - evaluations left - the end) / seconds of a step

Seconds are measured in the run itself; all workers go by the first one's clock. What the end takes (every tested set,
on all test images) is told from an evaluation during the run by its passes through the network.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from condense.condensation.config import RunConfig
from condense.data.sources import DataSource
from condense.errors import ConfigError
from condense.learners.recipes import RECIPES
from condense.matching.schedule import Schedule
from condense.workers.collective import Collective

EVALUATIONS = 5  # in a run that does not say how many
FOLLOWED = 20  # in one that ends when their curve has settled
MARGIN = 1.2  # of the end: the flow's measurements, writing
_PREFIX = "pace."


def parse_duration(text: str) -> float:
    """Of a time such as 90s, 10m, 1h30m or 600 (seconds).

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ConfigError(f"{text!r} is no time to work with", "write it as in 90s, 10m or 1h30m")
    return float(total)


def evaluation_interval(config: RunConfig) -> int:
    """Outer steps between the evaluations of a run without a time budget."""
    count = FOLLOWED if config.evaluation.patience else EVALUATIONS
    return config.evaluation.every or math.ceil(config.outer_steps / count)


class TimeBudget:
    """One run's."""

    def __init__(
        self, config: RunConfig, source: DataSource, started: float, collective: Collective, device: torch.device
    ) -> None:
        """started: when the run began, of `time.perf_counter`."""
        self.config, self.collective, self.device = config, collective, device
        self.began = started
        self.steps, self.step_s = -1, 0.0  # a process's first step also warms up: it does not count
        self.evaluations, self.evaluation_s = 0, 0.0  # how many; what the latest took
        self.elapsed = 0.0
        self._endings = _endings(config, source, collective.size)

    @contextmanager
    def time_step(self) -> Iterator[None]:
        """Around an outer step."""
        started = time.perf_counter()
        yield
        self.steps += 1
        self.step_s += (time.perf_counter() - started) if self.steps else 0.0

    @contextmanager
    def time_evaluation(self) -> Iterator[None]:
        """Around an evaluation."""
        started = time.perf_counter()
        yield
        self.evaluations += 1
        self.evaluation_s = time.perf_counter() - started

    def set_end_(self, schedule: Schedule, done: int) -> None:
        """After `done` outer steps: where there is a time budget, the schedule ends when it is used up."""
        budget = self.config.time_budget_s
        if budget is None:
            return
        mine = [time.perf_counter() - self.began, self.step_s, self.evaluation_s]
        told = torch.tensor(mine, dtype=torch.float64, device=self.device)
        agreed = self.collective.sum_(told if self.collective.rank == 0 else torch.zeros_like(told))
        self.elapsed, step_s, evaluation_s = agreed.tolist()
        if self.steps < 1:
            return
        evaluations = max(1, self._count - self.evaluations)
        left = budget - self.elapsed - evaluation_s * (evaluations + MARGIN * self._endings)
        schedule.time_left_(done, left, step_s, self.steps)

    def evaluation_due(self, schedule: Schedule, done: int) -> bool:
        """Whether the images are evaluated after `done` outer steps."""
        if done == schedule.total:
            return True
        every, budget = self.config.evaluation.every, self.config.time_budget_s
        if every or budget is None:
            return done % evaluation_interval(self.config) == 0
        if self.evaluations == 0:
            return done > 1  # soon, to know what one takes
        return self.elapsed >= self.evaluations * budget / self._count

    def scalars(self) -> dict[str, float]:
        """For a checkpoint."""
        if self.config.time_budget_s is None:
            return {}
        values = {"elapsed": self.elapsed, "evaluations": self.evaluations, "evaluation_s": self.evaluation_s}
        return {_PREFIX + name: float(value) for name, value in values.items()}

    def restore_(self, scalars: dict[str, float]) -> None:
        """Takes over what `scalars` gave, if it is there: the time of earlier sittings is used up."""
        if _PREFIX + "elapsed" in scalars:
            self.began -= scalars[_PREFIX + "elapsed"]
            self.evaluations = int(scalars[_PREFIX + "evaluations"])
            self.evaluation_s = scalars[_PREFIX + "evaluation_s"]

    @property
    def _count(self) -> int:
        return FOLLOWED if self.config.evaluation.patience else EVALUATIONS


def _endings(config: RunConfig, source: DataSource, workers: int) -> float:
    """What the end of a run takes, in evaluations during it: by images that pass through a learner."""
    at = config.evaluation
    if not at.test:
        return 0.0
    images = len(source.class_names) * config.images_per_class * config.images.factor**2
    trained = 3 * RECIPES[at.recipe].epochs * images  # forward, and twice that back
    validation = min(at.validation_images, source.count("validation"))
    groups = math.ceil(at.learners / workers) / math.ceil(at.validation_learners / workers)
    sets = 4 if at.controls else 1
    return sets * groups * (trained + source.count("test")) / (trained + validation)
