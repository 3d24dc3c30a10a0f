"""The same run on Ray Train: workers that own class slices, checkpoints, restarts."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from cluster.connection import POLL_S, connected
from condense import checkpoints
from condense.allocator import keep_memory
from condense.checkpoints import Checkpoint
from condense.collective import Alone, ProcessGroup, class_slice
from condense.condensation import condense
from condense.config import RunConfig
from condense.errors import CheckpointError, CondenseError, ConfigError, FlowError, NonFiniteError, SourceError
from condense.local import run_name
from condense.parquet import CondensedDataset
from condense.settings import validate
from condense.surroundings import Progress, Surroundings
from condense.tracking import Tracker

PROGRESS_EVERY_S = 0.5


def train(
    config: RunConfig, class_count: int, tracker: Tracker, progress: Callable[[Progress], None]
) -> CondensedDataset:
    """The condensed dataset of `config`, made by Ray Train workers; resumes an interrupted run of the same config.

    Args:
        config: `workers` is a number of at least 1, or "auto".
        class_count: classes of the source.
        tracker: carried to worker 0.
        progress: called here, in the driver.

    Raises:
        ConfigError: more workers than classes or than the cluster can hold.
        CondenseError: what the workers raised.
    """
    with connected():
        workers, cpus, gpus = layout(config, class_count)
        queue = Queue(actor_options={"num_cpus": 0})
        loop_config = {"config": config.as_dict(), "tracker": tracker, "queue": queue, "cpus": cpus}
        resources: dict[str, float] = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        trainer = TorchTrainer(
            _worker,
            train_loop_config=loop_config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=run_name(config),
                storage_path=_storage(config.storage),
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        with _relayed(queue, progress):
            try:
                outcome = trainer.fit().return_value
            except ray.train.TrainingFailedError as error:
                raise _cause(error) from error
        if isinstance(outcome, CondenseError):
            raise outcome
        assert isinstance(outcome, CondensedDataset)
        return outcome


def layout(config: RunConfig, class_count: int) -> tuple[int, int, float]:
    """(workers, CPUs each, GPUs each) on the cluster that is connected.

    "auto" is one worker a GPU, or one every two cores, and never more than classes.

    Raises:
        ConfigError: the cluster cannot hold them.
    """
    total = ray.cluster_resources()
    cores, cards = int(total.get("CPU", 0)), total.get("GPU", 0.0)
    one_each = int(cards) if cards else cores // 2
    workers = max(1, min(class_count, one_each)) if config.workers == "auto" else int(config.workers)
    class_slice(class_count, 0, workers)
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else min(1.0, cards / workers)
    cpus = config.cpus_per_worker or max(1, cores // workers)
    if workers * cpus > cores:
        raise ConfigError(
            f"{workers} workers with {cpus} CPUs each need {workers * cpus} CPUs; the cluster has {cores}",
            "lower workers or cpus_per_worker",
        )
    if workers * gpus > cards:
        raise ConfigError(
            f"{workers} workers with {gpus} GPUs each need more than the cluster's {cards}",
            "lower workers or gpus_per_worker",
        )
    return workers, cpus, gpus


class _RayCheckpoints:
    """Checkpoints that Ray Train keeps, commits and gives back after a restart."""

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Reports; every worker must call it, and it returns when the checkpoint is uploaded."""
        if checkpoint is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.write(checkpoint, Path(folder) / checkpoints.FILE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def latest(self) -> Checkpoint | None:
        """The last committed one of this run."""
        stored = ray.train.get_checkpoint()
        if stored is None:
            return None
        with stored.as_directory() as folder:
            return checkpoints.read(Path(folder) / checkpoints.FILE)


def _worker(loop_config: dict[str, Any]) -> CondensedDataset | CondenseError | None:
    keep_memory()
    torch.set_num_threads(loop_config["cpus"])
    config = validate(RunConfig, loop_config["config"], where="the run's config")
    collective = ProcessGroup() if ray.train.get_context().get_world_size() > 1 else Alone()
    queue, last = loop_config["queue"], 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY_S or progress.done == progress.total:
            queue.put(progress)
            last = time.monotonic()

    around = Surroundings(collective, loop_config["tracker"], _RayCheckpoints(), tell, get_device())
    try:
        dataset = condense(config, around)
    except (ConfigError, SourceError, FlowError, CheckpointError, NonFiniteError) as error:
        # All workers stop with it at the same place, and trying again would end there again: returned, not raised, so
        # that Ray does not restart them.
        return error
    return dataset if collective.rank == 0 else None


@contextmanager
def _relayed(queue: Queue, progress: Callable[[Progress], None]) -> Iterator[None]:
    """Hands on what the workers tell, in a thread, while the enclosed block runs."""
    done = threading.Event()

    def relay() -> None:
        while not done.is_set() or not queue.empty():
            try:
                progress(queue.get(timeout=POLL_S))
            except Empty:
                continue

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)
        queue.shutdown()


def _storage(storage: str) -> str:
    return storage if "://" in storage else str(Path(storage).absolute())


def _cause(error: Exception) -> Exception:
    """The worker's own error inside Ray's, or Ray's."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, CondenseError):
            return inner
    return error
