"""What a computation is given besides its config: its workers, its device, and where it tells and keeps things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from condense.workers.checkpoints import Checkpoints
from condense.workers.collective import Collective
from condense.workers.tracking import Tracker


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `stage` in words, `done` of `total`, and the latest numbers."""

    stage: str
    done: int
    total: int
    values: dict[str, float]


@dataclass(frozen=True)
class WorkerContext:
    """One worker's: the same computation runs in process and on Ray Train, in other surroundings."""

    collective: Collective
    tracker: Tracker
    checkpoints: Checkpoints
    progress: Callable[[Progress], None]
    device: torch.device

    def tell(self, stage: str, done: int, total: int, values: dict[str, float]) -> None:
        """Progress, of the first worker alone."""
        if self.collective.rank == 0:
            self.progress(Progress(stage, done, total, values))
