"""Runs that are as small as can be, and checkpoints that end them early."""

from pathlib import Path

import torch

from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.settings import resolve
from condense.synthetic.dataset import CondensedDataset
from condense.workers import checkpoints
from condense.workers.checkpoints import Checkpoint, LocalCheckpoints, NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.tracking import RecordingTracker

TINY = (
    "data.image_size=16",
    "network.name=mlp",
    "network.width=16",
    "network.depth=1",
    "outer_steps=4",
    "evaluation.learners=1",
    "evaluation.validation_images=40",
    "evaluation.every=2",
    "checkpoint_every=1",
    "matching.real_batch=8",
)


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledAfter(LocalCheckpoints):
    """Dies on the outer step after the `steps`-th checkpoint."""

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__(folder)
        self.left = steps

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        if self.left == 0:
            raise KilledError
        super().save(checkpoint, metrics)
        self.left -= 1


def config(*overrides: str) -> RunConfig:
    return resolve(RunConfig, None, (*TINY, *overrides))


def run(
    of: RunConfig, keep: checkpoints.Checkpoints | None = None, tracker: RecordingTracker | None = None
) -> CondensedDataset:
    def progress(at: Progress) -> None:
        assert 0 <= at.done <= at.total

    context = WorkerContext(
        Alone(), tracker or RecordingTracker(), keep or NoCheckpoints(), progress, torch.device("cpu")
    )
    return condense(of, context)
