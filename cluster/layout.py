"""Lays out a job on the cluster that is connected: how many workers, and the cores and GPUs of each."""

from __future__ import annotations

from typing import Literal, Protocol

import ray
import ray.train

from cluster.ray_connection import own_cluster
from condense.errors import (
    ConfigError,
)
from condense.workers.mesh import check_mesh, most_workers


class Placement(Protocol):
    """The settings of a job that say on what it runs."""

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


def layout(config: Placement, shares: int, replicas: int = 1) -> tuple[int, int, float]:
    """Returns (workers, CPUs each, GPUs each) on the cluster that is connected.

    "auto" is one worker for each GPU, or one for every two cores, and never more than shares of the work. A cluster
    that RAY_ADDRESS names may grow: there, more workers than it holds now wait for machines to join.

    Args:
        config: what was asked for.
        shares: into how many parts the work can be divided.
        replicas: of each share, over which workers can be divided too.

    Raises:
        ConfigError: the cluster is this job's own and cannot hold them.
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
    """Returns the most cores that every worker can have; those of one worker are on one node."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for cores in range(max(nodes, default=0), 1, -1):
        if sum(held // cores for held in nodes) >= workers:
            return cores
    return 1
