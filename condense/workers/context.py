"""Defines what a job is given besides its config: workers, device, where progress and results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from condense.workers.checkpoints import Checkpoints
from condense.workers.collective import Collective
from condense.workers.tracking import Tracker

Counts = Literal["steps", "sets"]


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    Attributes:
        stage: what it does, in words.
        done: steps that are done.
        total: steps in all.
        values: the latest numbers, by name.
        milestone: whether it must arrive, such as an evaluation that a search decides by; of the others some may be
            left out.
        counts: what `done` and `total` count: the job's "steps", or "sets" that are tested after them.
        message: a sentence for the person, beside the numbers; empty mostly.
    """

    stage: str
    done: int
    total: int
    values: dict[str, float]
    milestone: bool = False
    counts: Counts = "steps"
    message: str = ""


@dataclass(frozen=True)
class WorkerContext:
    """Connects one worker to the rest: the same job runs in process and on Ray Train, in other contexts.

    Attributes:
        collective: the workers.
        tracker: where parameters, metrics and pictures go.
        checkpoints: where the job's state goes, and comes from after an interruption.
        progress: called with where the job stands.
        device: the device that computes, which is also that of the collective's tensors.
    """

    collective: Collective
    tracker: Tracker
    checkpoints: Checkpoints
    progress: Callable[[Progress], None]
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the first worker, which alone reports, logs and writes."""
        return self.collective.rank == 0

    def report(
        self,
        stage: str,
        done: int,
        total: int,
        values: dict[str, float],
        *,
        milestone: bool = False,
        counts: Counts = "steps",
    ) -> None:
        """Reports progress, as `Progress` has it; on all workers but the first this does nothing."""
        if self.first:
            self.progress(Progress(stage, done, total, values, milestone, counts))

    def going_on(self, stage: str, done: int, total: int) -> None:
        """Says that the job goes on from a checkpoint, as `report` does."""
        if self.first:
            message = f"going on at step {done} of {total}"
            self.progress(Progress(stage, done, total, {}, milestone=True, message=message))
