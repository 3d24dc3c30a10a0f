"""What a computation is given besides its config: its workers, its device, and where it tells and keeps things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from condense.checkpoints import Checkpoints
from condense.collective import Collective
from condense.tracking import Tracker


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `stage` in words, `done` of `total`, and the latest numbers."""

    stage: str
    done: int
    total: int
    values: dict[str, float]


@dataclass(frozen=True)
class Surroundings:
    """One worker's: the same computation runs in process and on Ray Train, in other surroundings."""

    collective: Collective
    tracker: Tracker
    checkpoints: Checkpoints
    progress: Callable[[Progress], None]
    device: torch.device


def local_device() -> torch.device:
    """This machine's GPU if it has one, else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
