"""What a computation is given besides its config: its workers, its device, and where it tells and keeps things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from condense.errors import ConfigError
from condense.workers.checkpoints import Checkpoints
from condense.workers.collective import Collective
from condense.workers.devices import forbid_tf32
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


def local_device(gpus: float | None = None) -> torch.device:
    """This machine's GPU if it has one, else its CPU; from now on float32 is float32 there.

    Args:
        gpus: `gpus_per_worker` of a run in this process: 0 asks for the CPU, more for a GPU, None for either.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"gpus_per_worker={gpus:g}, but this machine has no CUDA device that PyTorch can use",
            "leave gpus_per_worker out to compute on the CPU, or install a driver and a PyTorch that fit the GPU",
        )
    forbid_tf32()
    return torch.device("cuda" if torch.cuda.is_available() and gpus != 0 else "cpu")
