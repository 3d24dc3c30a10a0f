"""Divides the work of a run: which classes each worker owns, and which networks it computes.

    mesh = class slices x network replicas

A slice owns the real and synthetic images of its classes. A replica draws networks of its own, and the gradients at the
images are averaged over replicas. Nothing that is drawn depends on the mesh: another mesh changes the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from condense.errors import ConfigError
from condense.workers.collective import Collective


@dataclass(frozen=True)
class Mesh:
    """Says where one worker stands among class slices and network replicas.

    Attributes:
        everyone: all workers.
        over_slices: the workers that compute the same replicas as this one, one of each slice, in the slices' order.
        over_replicas: the workers that hold the same slice as this one, and move its images alike.
        replicas: networks at each match step, on all workers together.
        own: those of this worker.
    """

    everyone: Collective
    over_slices: Collective
    over_replicas: Collective
    replicas: int
    own: range


def build_mesh(collective: Collective, replicas: int = 1) -> Mesh:
    """Makes the mesh of these workers (see `mesh_shape`). All of them call it."""
    slices, columns = mesh_shape(collective.size, replicas)
    # Neighbours share a replica and have different slices: between match steps those exchange the gradients of their
    # network at every step of its training, which is far more than the gradients of images.
    over_slices = collective.split([range(column * slices, (column + 1) * slices) for column in range(columns)])
    over_replicas = collective.split([range(number, columns * slices, slices) for number in range(slices)])
    column = collective.rank // slices
    own = range(column, column + 1) if columns == replicas else range(replicas)
    return Mesh(collective, over_slices, over_replicas, replicas, own)


def mesh_shape(workers: int, replicas: int) -> tuple[int, int]:
    """Returns (class slices, workers that hold each of them).

    Where the workers are a multiple of the replicas, a worker computes one replica of one slice; otherwise every worker
    has a slice and computes all of its replicas one after another.
    """
    return (workers // replicas, replicas) if workers % replicas == 0 else (workers, 1)


def check_mesh(classes: int, workers: int, replicas: int = 1, most: int | None = None) -> None:
    """Refuses a number of workers at which some would own no class.

    Args:
        most: workers to grow to, one at a time: every number up to it must do.

    Raises:
        ConfigError: more class slices than classes.
    """
    for count in range(most or workers, workers - 1, -1):
        slices, _ = mesh_shape(count, replicas)
        if slices <= classes:
            continue
        if replicas == 1:
            made, remedy = f"{count} workers", f"set workers <= {classes}"
        else:
            made = f"{count} workers with replicas={replicas} are {slices} slices"
            remedy = f"set workers <= {classes}, or without max_workers to a multiple of {replicas} up to"
            remedy += f" {classes * replicas}"
        raise ConfigError(f"{made} for {classes} classes: a worker would own none", remedy)


def most_workers(available: int, classes: int, replicas: int = 1) -> int:
    """Returns the most workers that all own a class, of those available; at least one."""
    fitting = (n for n in range(max(1, available), 0, -1) if mesh_shape(n, replicas)[0] <= classes)
    return next(fitting)


def class_slice(classes: int, rank: int, size: int) -> range:
    """Returns the contiguous classes of slice `rank` of `size`; slice lengths differ by at most one.

    Raises:
        ConfigError: more slices than classes.
    """
    check_mesh(classes, size)
    return range(rank * classes // size, (rank + 1) * classes // size)
