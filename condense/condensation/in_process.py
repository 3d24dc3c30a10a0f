"""Runs a condensation in this process: without Ray, and without a tracking server unless the caller brings one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.synthetic.dataset import CondensedDataset
from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.devices import local_device
from condense.workers.memory import keep_freed_memory
from condense.workers.storage import StoredCheckpoints
from condense.workers.tracking import Tracker


def condense_here(config: RunConfig, tracker: Tracker, progress: Callable[[Progress], None]) -> CondensedDataset:
    """Condenses on this machine's GPU if it has one, else on its CPU, with checkpoints under `storage`.

    Raises:
        CondenseError: as `condense`.
    """
    keep_freed_memory()
    checkpoints = StoredCheckpoints(config.storage, run_name(config))
    checkpoints.mark(run_name(config))
    return condense(
        config, WorkerContext(Alone(), tracker, checkpoints, progress, local_device(config.gpus_per_worker))
    )


def run_name(config: RunConfig) -> str:
    """Returns the name under which a run keeps its checkpoints: a changed config never finds another's."""
    return f"condense-{config.identity()}"


def folder_of(config: RunConfig, source_name: str) -> Path:
    """Returns the folder that a run's dataset goes to; no other config writes there."""
    return config.output / f"{config.dataset_name(source_name)}-{config.identity()[:8]}"


def forget_checkpoints(config: RunConfig) -> None:
    """Removes the checkpoints of a run whose dataset is written."""
    StoredCheckpoints(config.storage, run_name(config)).forget()
