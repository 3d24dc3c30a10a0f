"""Workers as threads of this process, for what real processes would only make slow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
WAIT_S = 120


class Threads:
    """A collective of threads: sums and gathers over what all have handed in."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, shared: dict[Any, Any]) -> None:
        """shared: one for all of a collective."""
        self.rank, self.size, self.barrier, self.shared = rank, size, barrier, shared

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self.shared[self.rank] = tensor.detach().clone()
        self.barrier.wait(timeout=WAIT_S)
        joined = [self.shared[rank] for rank in range(self.size)]
        self.barrier.wait(timeout=WAIT_S)
        return joined

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._all(tensor)).sum(0))

    def begin_sum_(self, tensor: Tensor) -> Callable[[], object]:
        assert tensor.is_contiguous()
        return lambda: self.sum_(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._all(tensor))

    def split(self, groups: Sequence[range]) -> Threads:
        (mine,) = [ranks for ranks in groups if self.rank in ranks]
        barrier, shared = self.shared.setdefault(mine, (threading.Barrier(len(mine)), {}))
        return Threads(mine.index(self.rank), len(mine), barrier, shared)


def on_threads(size: int, work: Callable[[Threads], T]) -> list[T]:
    """What `work` returns on each of `size` workers, in rank order; the first error of one of them is raised."""
    barrier, shared = threading.Barrier(size), {}
    found: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, barrier, shared))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=WAIT_S)
    if errors:
        raise errors[0]
    return [found[rank] for rank in range(size)]
