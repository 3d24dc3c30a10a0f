"""Runs a condensation in this process: without Ray, and without a tracking server unless the caller brings one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.synthetic.dataset import CondensedDataset
from condense.workers.context import Progress
from condense.workers.in_process import local_context
from condense.workers.interruption import interruption_explained
from condense.workers.storage import StoredCheckpoints
from condense.workers.tracking import Tracker


def condense_here(config: RunConfig, tracker: Tracker, progress: Callable[[Progress], None]) -> CondensedDataset:
    """Condenses on this machine's GPU if it has one, else on its CPU, with checkpoints under `storage`.

    Raises:
        CondenseError: as `condense`.
    """
    kept = StoredCheckpoints(config.storage, run_name(config))
    with interruption_explained(progress, kept.latest_step) as tell:
        return condense(config, local_context(config.storage, run_name(config), tracker, tell, config.gpus_per_worker))


def run_name(config: RunConfig) -> str:
    """Returns the name under which a run keeps its checkpoints: a changed config never finds another's."""
    return f"condense-{config.identity()}"


def folder_of(config: RunConfig, source_name: str) -> Path:
    """Returns the folder that a run's dataset goes to; no other config writes there."""
    return config.output / f"{config.dataset_name(source_name)}-{config.identity()[:8]}"


def forget_checkpoints(config: RunConfig) -> None:
    """Removes the checkpoints of a run whose dataset is written."""
    StoredCheckpoints(config.storage, run_name(config)).forget()
