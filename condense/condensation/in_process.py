"""A run in this process: no Ray, and no tracking server unless the caller brings a tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.condensation.pinning import pin
from condense.files import check_folder_writable
from condense.synthetic.dataset import CondensedDataset, write_dataset
from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.devices import local_device
from condense.workers.memory import keep_freed_memory
from condense.workers.storage import StoredCheckpoints
from condense.workers.tracking import NullTracker, Tracker

PARQUET = "data.parquet"


def run(config: RunConfig, progress: Callable[[Progress], None]) -> tuple[CondensedDataset, Path]:
    """Condenses and writes the Parquet; the dataset and the file.

    Raises:
        CondenseError: before any work where the data, the flow or the output folder is wrong.
    """
    check_folder_writable(config.output, "set output=FOLDER")
    source, flow = open_checked(config)
    config = pin(config, flow)
    dataset = condense_here(config, NullTracker(), progress)
    folder = folder_of(config, source.name)
    path = write_dataset(folder / PARQUET, dataset)
    forget_checkpoints(config)
    return dataset, path


def condense_here(config: RunConfig, tracker: Tracker, progress: Callable[[Progress], None]) -> CondensedDataset:
    """`condense` on this machine's GPU if it has one, else its CPU, with checkpoints under `storage`."""
    keep_freed_memory()
    checkpoints = StoredCheckpoints(config.storage, run_name(config))
    checkpoints.mark(run_name(config))
    return condense(
        config, WorkerContext(Alone(), tracker, checkpoints, progress, local_device(config.gpus_per_worker))
    )


def run_name(config: RunConfig) -> str:
    """The name under which a run keeps its checkpoints: a changed config never finds another's."""
    return f"condense-{config.identity()}"


def folder_of(config: RunConfig, source_name: str) -> Path:
    """Where a run's dataset goes: no other config writes there."""
    return config.output / f"{config.dataset_name(source_name)}-{config.identity()[:8]}"


def forget_checkpoints(config: RunConfig) -> None:
    """Removes the checkpoints of a run whose dataset is written."""
    StoredCheckpoints(config.storage, run_name(config)).forget()
