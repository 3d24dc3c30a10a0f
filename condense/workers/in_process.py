"""Gives a job that runs in this process its context: without Ray, and without a tracking server of its own."""

from __future__ import annotations

from collections.abc import Callable

from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.devices import local_device
from condense.workers.memory import keep_freed_memory
from condense.workers.storage import StoredCheckpoints
from condense.workers.tracking import Tracker


def local_context(
    storage: str, name: str, tracker: Tracker, progress: Callable[[Progress], None], gpus: float | None = None
) -> WorkerContext:
    """Returns the context of a job on this machine's GPU if it has one, else on its CPU.

    Args:
        storage: the folder or object store that checkpoints go to.
        name: the job's, under which it finds its checkpoints again.
        tracker: where parameters, metrics and pictures go.
        progress: called with where the job stands.
        gpus: `gpus_per_worker`: 0 asks for the CPU, more for a GPU, None for either.

    Raises:
        ConfigError: a GPU is asked for and there is none.
        OutputError: the storage cannot be written.
    """
    keep_freed_memory()
    checkpoints = StoredCheckpoints(storage, name)
    checkpoints.mark(name)
    return WorkerContext(Alone(), tracker, checkpoints, progress, local_device(gpus))
