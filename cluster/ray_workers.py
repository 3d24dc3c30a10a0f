"""Runs any job on Ray Train workers: starts them, relays their progress, restarts them, passes on their errors."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.checkpoints import SharedCheckpoints
from cluster.layout import Placement, layout
from cluster.network_interface import RayInterfaceConfig
from cluster.ray_connection import cluster_in_words, connected, own_cluster
from condense.errors import (
    CheckpointError,
    ClusterError,
    CondenseError,
    ConfigError,
    FlowError,
    NonFiniteError,
    OutputError,
    SourceError,
    reason_of,
)
from condense.files import scratch_folder
from condense.workers.collective import Alone, ProcessGroup
from condense.workers.context import Progress, WorkerContext
from condense.workers.devices import forbid_tf32
from condense.workers.interruption import SAME, interruption_explained
from condense.workers.memory import ONE_HEAP, keep_freed_memory
from condense.workers.mesh import check_mesh
from condense.workers.storage import StoredCheckpoints, absolute
from condense.workers.tracking import Tracker

PROGRESS_EVERY_S = 0.5
RESIZE_S = 10.0  # between looks for machines that have joined; growing costs a restart from the last checkpoint
# Ray looks every 20 s at what an elastic group can count on. A group that is started before Ray has seen that a machine
# was lost waits this long for it in vain.
ELASTIC_START_S = "20"
ABORT_S = 2.0  # `ray job stop` kills a driver three seconds after it has asked it to end
START_ATTEMPTS = 30  # of a minute each: how long a job waits for machines that a cluster lacks or has lost


def on_workers(
    job: Callable[[WorkerContext], Any],
    name: str,
    config: Placement,
    shares: int,
    tracker: Tracker,
    progress: Callable[[Progress], None],
    *,
    most: int | None = None,
    replicas: int = 1,
    again: str = SAME,
) -> Any:
    """Runs a job on Ray Train workers, and returns what it returns on worker 0.

    An interrupted job of the same name goes on from its last checkpoint.

    Args:
        job: called on every worker; it must pickle.
        name: of its checkpoints.
        config: `workers` is a number of at least 1, or "auto".
        shares: into how many parts the work can be divided.
        tracker: carried to worker 0.
        progress: called here, in the driver.
        most: how many workers the group grows to, from `workers`, while the cluster has room; it shrinks when it loses
            some. Each change goes on from the last checkpoint. None keeps their number.
        replicas: of each share, over which workers can be divided too (see `condense.workers.mesh.mesh_shape`).
        again: what goes on with the job after an interruption.

    Raises:
        ConfigError: more workers than shares or than the cluster can hold.
        CondenseError: what the workers raised.
    """
    kept = StoredCheckpoints(absolute(config.storage), name)
    with (
        interruption_explained(progress, kept.latest_step, again) as tell,
        connected(),
        scratch_folder() as scratch,  # Ray's own notes, of no use to a later run
    ):
        progress(Progress("starting", 0, 1, {}, message=cluster_in_words()))
        workers, cpus, gpus = layout(config, shares, replicas)
        if most is not None:
            check_mesh(shares, workers, replicas, most)
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_START_S)
        storage = absolute(config.storage)
        started = uuid.uuid4().hex
        kept.mark(started)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # outlives every worker's node
        loop_config = {
            "job": job,
            "name": name,
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
        with _relayed(queue, tell):
            try:
                outcome = trainer.fit().return_value
            except (KeyboardInterrupt, SystemExit):
                trainer.abort()
                raise
            except ray.train.TrainingFailedError as error:
                raise _cause(error, config) from error
            except ray.exceptions.RayError as error:  # of the driver's node: workers' are the controller's business
                raise ClusterError(
                    f"Ray lost what leads this run: {reason_of(error)}",
                    "is there memory left on the driver's node? The same command goes on from the last checkpoint",
                ) from error
        if isinstance(outcome, CondenseError):
            raise outcome
        return outcome


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Leaves out the helpers that Ray Train starts for every run and that ours has no use for.

    Each is a Python process beside the workers that takes 0.6 % of a core for nothing. The cleaner of placement groups
    takes 1 %: every second it asks for a dashboard, which a job's own cluster does not have.

    Leaves signals alone, too: Ray's own handler of Ctrl-C ends the process with exit code 1, and not SIGTERM's way.
    """

    _controller: Any = None

    def abort(self) -> None:
        """Ends the workers, and what they have reserved, at once."""
        if self._controller is not None:
            with suppress(ray.exceptions.RayError):  # it exits with the answer
                ray.get(self._controller.abort.remote(), timeout=ABORT_S)

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def _create_default_callbacks(self) -> list[Any]:
        idle = {"DatasetsCallback"}  # of Ray Data
        if own_cluster():  # ends with this run, with all that it reserved
            idle.add("PlacementGroupCleanerCallback")
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in idle]


def _worker(loop_config: dict[str, Any]) -> Any:
    keep_freed_memory()
    forbid_tf32()
    torch.set_num_threads(loop_config["cpus"])
    collective = ProcessGroup() if ray.train.get_context().get_world_size() > 1 else Alone()
    queue, last = loop_config["queue"], 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        due = time.monotonic() - last > PROGRESS_EVERY_S
        if due or progress.milestone or progress.done == progress.total:
            queue.put(progress)
            last = time.monotonic()

    try:
        keep = SharedCheckpoints(
            loop_config["storage"], loop_config["name"], loop_config["started"], collective, get_device()
        )
        made = loop_config["job"](WorkerContext(collective, loop_config["tracker"], keep, tell, get_device()))
    except (ConfigError, SourceError, FlowError, CheckpointError, NonFiniteError, OutputError) as error:
        # All workers stop with it at the same place, and another try would end there again. So it is returned and not
        # raised: Ray restarts workers that raise.
        return error
    finally:
        loop_config["tracker"].rest()  # the driver goes on with what waits
    return made if collective.rank == 0 else None


@contextmanager
def _relayed(queue: Queue, progress: Callable[[Progress], None]) -> Iterator[None]:
    """Hands on the workers' progress, in a thread, while the enclosed block runs.

    The thread waits at the queue. Asking it five times a second took queue and driver together 3 % of a core. The end
    comes through the queue, after everything that the workers have put there.
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
    """Returns the worker's own error that Ray's holds, or says what Ray gave up on."""
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
