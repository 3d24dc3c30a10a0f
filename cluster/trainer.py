"""The same computations on Ray Train: workers, where they run, what they tell, their checkpoints and restarts."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, Protocol

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.checkpoints import SharedCheckpoints
from cluster.network_interface import RayInterfaceConfig
from cluster.ray_connection import connected, own_cluster
from condense.condensation.config import RunConfig
from condense.condensation.in_process import run_name
from condense.condensation.loop import condense
from condense.errors import (
    CheckpointError,
    ClusterError,
    CondenseError,
    ConfigError,
    FlowError,
    NonFiniteError,
    OutputError,
    SourceError,
)
from condense.settings import validate
from condense.synthetic.dataset import CondensedDataset
from condense.workers.collective import Alone, ProcessGroup
from condense.workers.context import Progress, WorkerContext
from condense.workers.devices import forbid_tf32
from condense.workers.memory import ONE_HEAP, keep_freed_memory
from condense.workers.mesh import check_mesh, most_workers
from condense.workers.storage import StoredCheckpoints, absolute
from condense.workers.tracking import Tracker

PROGRESS_EVERY_S = 0.5
FOLLOWED = {"validation/accuracy", "held_out_bits_per_dim"}  # every one of these is told: a search decides by them
RESIZE_S = 10.0  # between looks for machines that have joined; growing costs a restart from the last checkpoint
# Ray looks every 20 s at what an elastic group can count on. A group that is started before it has seen that a machine
# was lost waits this long for it in vain.
ELASTIC_START_S = "20"
START_ATTEMPTS = 30  # of a minute each: how long a run waits for machines that a cluster lacks or has lost


class Placement(Protocol):
    """The settings that say on what a computation runs: RunConfig's and FlowFitConfig's."""

    @property
    def workers(self) -> int | Literal["auto"]: ...
    @property
    def cpus_per_worker(self) -> int | None: ...
    @property
    def gpus_per_worker(self) -> float | None: ...
    @property
    def max_failures(self) -> int: ...
    @property
    def storage(self) -> str: ...


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
    job = partial(_condense, config.as_dict())
    most, replicas = config.max_workers, config.replicas
    made = on_workers(job, run_name(config), config, class_count, tracker, progress, most=most, replicas=replicas)
    assert isinstance(made, CondensedDataset)
    return made


def on_workers(
    job: Callable[[WorkerContext], Any],
    run: str,
    config: Placement,
    shares: int,
    tracker: Tracker,
    progress: Callable[[Progress], None],
    *,
    most: int | None = None,
    replicas: int = 1,
) -> Any:
    """What `job` returns on worker 0 of a group; an interrupted run of the same name goes on from its checkpoint.

    Args:
        job: called on every worker; it pickles.
        run: the name of its checkpoints.
        config: `workers` is a number of at least 1, or "auto".
        shares: into how many parts the work can be divided.
        tracker: carried to worker 0.
        progress: called here, in the driver.
        most: workers to grow to while the cluster has room, from `workers`, and to shrink from when it loses some;
            each change goes on from the last checkpoint. None keeps their number.
        replicas: of each share, over which workers can be divided too (see `condense.workers.collective.mesh_shape`).

    Raises:
        ConfigError: more workers than shares or than the cluster can hold.
        CondenseError: what the workers raised.
    """
    with connected(), tempfile.TemporaryDirectory() as scratch:  # Ray's own notes, of no use to a later run
        workers, cpus, gpus = layout(config, shares, replicas)
        if most is not None:
            check_mesh(shares, workers, replicas, most)
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_START_S)
        storage = absolute(config.storage)
        started = uuid.uuid4().hex
        StoredCheckpoints(storage, run).mark(started)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # outlives every worker's node
        loop_config = {
            "job": job,
            "run": run,
            "storage": storage,
            "started": started,
            "tracker": tracker,
            "queue": queue,
            "cpus": cpus,
        }
        resources: dict[str, float] = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        trainer = _Trainer(
            _worker,
            train_loop_config=loop_config,
            torch_config=RayInterfaceConfig(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers if most is None else (workers, most),
                elastic_resize_monitor_interval_s=RESIZE_S,
                use_gpu=gpus > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=started,
                storage_path=scratch,
                worker_runtime_env={"env_vars": ONE_HEAP},
                failure_config=ray.train.FailureConfig(
                    max_failures=config.max_failures, controller_failure_limit=START_ATTEMPTS
                ),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        with _relayed(queue, progress):
            try:
                outcome = trainer.fit().return_value
            except ray.train.TrainingFailedError as error:
                raise _cause(error, config) from error
            except ray.exceptions.RayError as error:  # of the driver's node: workers' are the controller's business
                raise ClusterError(
                    f"Ray lost what leads this run: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
                    "is there memory left on the driver's node? The same command goes on from the last checkpoint",
                ) from error
        if isinstance(outcome, CondenseError):
            raise outcome
        return outcome


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without the helpers that Ray Train starts for every run and that have nothing to do in one of ours.

    Each is a Python process that starts beside the workers and then takes 0.6 % of a core for nothing; the cleaner of
    placement groups 1 %, asking every second a dashboard that a run's own cluster does not have.
    """

    def _create_default_callbacks(self) -> list[Any]:
        idle = {"DatasetsCallback"}  # of Ray Data
        if own_cluster():  # ends with this run, with all that it reserved
            idle.add("PlacementGroupCleanerCallback")
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in idle]


def layout(config: Placement, shares: int, replicas: int = 1) -> tuple[int, int, float]:
    """(workers, CPUs each, GPUs each) on the cluster that is connected.

    "auto" is one worker a GPU, or one every two cores, and never more than shares of the work. A cluster that
    RAY_ADDRESS names may grow: there, more workers than it holds now wait for machines to join.

    Raises:
        ConfigError: the cluster is this run's own and cannot hold them.
    """
    own = own_cluster()
    total = ray.cluster_resources()
    cores, cards = int(total.get("CPU", 0)), total.get("GPU", 0.0)
    one_each = int(cards) if cards else cores // 2
    workers = most_workers(one_each, shares, replicas) if config.workers == "auto" else int(config.workers)
    check_mesh(shares, workers, replicas)
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else min(1.0, cards / workers)
    cpus = config.cpus_per_worker or _cores_each(workers)
    if own and workers * cpus > cores:
        raise ConfigError(
            f"{workers} workers with {cpus} CPUs each need {workers * cpus} CPUs; the cluster has {cores}",
            "lower workers or cpus_per_worker",
        )
    if own and workers * gpus > cards:
        raise ConfigError(
            f"{workers} workers with {gpus} GPUs each need more than the cluster's {cards}",
            "lower workers or gpus_per_worker",
        )
    return workers, cpus, gpus


def _cores_each(workers: int) -> int:
    """The most cores that every worker can have: a worker's are on one node."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for cores in range(max(nodes, default=0), 1, -1):
        if sum(held // cores for held in nodes) >= workers:
            return cores
    return 1


def _condense(values: dict[str, Any], context: WorkerContext) -> CondensedDataset:
    return condense(validate(RunConfig, values, where="the run's config"), context)


def _worker(loop_config: dict[str, Any]) -> Any:
    keep_freed_memory()
    forbid_tf32()
    torch.set_num_threads(loop_config["cpus"])
    collective = ProcessGroup() if ray.train.get_context().get_world_size() > 1 else Alone()
    queue, last = loop_config["queue"], 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        if (
            FOLLOWED & progress.values.keys()
            or time.monotonic() - last > PROGRESS_EVERY_S
            or progress.done == progress.total
        ):
            queue.put(progress)
            last = time.monotonic()

    try:
        keep = SharedCheckpoints(
            loop_config["storage"], loop_config["run"], loop_config["started"], collective, get_device()
        )
        made = loop_config["job"](WorkerContext(collective, loop_config["tracker"], keep, tell, get_device()))
    except (ConfigError, SourceError, FlowError, CheckpointError, NonFiniteError, OutputError) as error:
        # All workers stop with it at the same place, and trying again would end there again: returned, not raised, so
        # that Ray does not restart them.
        return error
    finally:
        loop_config["tracker"].rest()  # the driver goes on with what waits
    return made if collective.rank == 0 else None


@contextmanager
def _relayed(queue: Queue, progress: Callable[[Progress], None]) -> Iterator[None]:
    """Hands on what the workers tell, in a thread, while the enclosed block runs.

    The thread waits in the queue and asks for nothing meanwhile: asking five times a second took queue and driver
    together 3 % of a core. The end comes through the queue, after all that workers have told.
    """

    def relay() -> None:
        with suppress(ray.exceptions.RayError):  # the queue is gone: the run ends with the error that took it
            while (told := queue.get()) is not None:
                progress(told)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(ray.exceptions.RayError):
            queue.put(None)
            thread.join(timeout=10)
        queue.shutdown()


def _cause(error: Exception, config: Placement) -> CondenseError:
    """The worker's own error inside Ray's, or what Ray gave up on."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, CondenseError):
            return inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ClusterError(
        f"Ray gave the run up after {config.max_failures} lost workers or {START_ATTEMPTS} attempts to start them:"
        f" {lines[-1]}",
        "is every node's memory large enough, and can the cluster hold all workers at once?"
        " The same command goes on from the last checkpoint",
    )
