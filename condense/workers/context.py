"""Defines what a job is given besides its config: workers, device, where progress and results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from condense.workers.checkpoints import Checkpoints
from condense.workers.collective import Collective
from condense.workers.tracking import Tracker


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
    """

    stage: str
    done: int
    total: int
    values: dict[str, float]
    milestone: bool = False


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

    def report(self, stage: str, done: int, total: int, values: dict[str, float], *, milestone: bool = False) -> None:
        """Reports progress, as `Progress` has it; on all workers but the first this does nothing."""
        if self.first:
            self.progress(Progress(stage, done, total, values, milestone))
