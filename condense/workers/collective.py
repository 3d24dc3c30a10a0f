"""Sums and gathers tensors over the workers of a job; with one worker, nothing is exchanged."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from condense import errors
from condense.errors import CondenseError
from condense.workers.shared_sum import share_memory

GLOO_THREAD = "gloo_tcp_loop"


class Collective(Protocol):
    """Defines what the algorithm needs of the other workers.

    Every worker must call the same methods in the same order.
    """

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replaces `tensor` by its sum over workers, and returns it."""

    def begin_sum_(self, tensor: Tensor) -> Callable[[], object]:
        """Begins `sum_` of a contiguous tensor, and returns a function that waits for its end.

        Only more of these may come between.
        """

    def gather(self, tensor: Tensor) -> Tensor:
        """Joins the workers' tensors along the first dimension, in rank order; their lengths may differ."""

    def split(self, groups: Sequence[range]) -> Collective:
        """Returns the workers of this one's group.

        `groups` is the same on all workers, and has every rank in one group.
        """


class Alone:
    """Stands for the workers where there is one."""

    rank = 0
    size = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """Returns `tensor` itself."""
        return tensor

    def begin_sum_(self, tensor: Tensor) -> Callable[[], object]:
        """Returns a function that has nothing to wait for."""
        return lambda: None

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns `tensor` itself."""
        return tensor

    def split(self, groups: Sequence[range]) -> Collective:
        """Returns itself."""
        return self


class ProcessGroup:
    """Exchanges through a torch.distributed group (gloo on CPU, NCCL on GPU).

    It is the default group, which somebody else has initialised, or a part of it that `split` made.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        _calm_exchanges()
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._shared = None
        if dist.get_backend(group) == "gloo":
            self._shared = share_memory(self.rank, self.size, partial(gather_text, self, device=torch.device("cpu")))

    def sum_(self, tensor: Tensor) -> Tensor:
        """All-reduces, between processes of one machine through memory that they share."""
        self.begin_sum_(tensor)()
        return tensor

    def begin_sum_(self, tensor: Tensor) -> Callable[[], object]:
        """All-reduces in the background.

        Through shared memory, which takes less time than to begin, it does so at once.
        """
        if self._shared is not None and self._shared.takes(tensor):
            self._shared.sum_(tensor)
            return lambda: None
        work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None  # this worker is in the group
        wait: Callable[[], object] = work.wait
        return wait

    def gather(self, tensor: Tensor) -> Tensor:
        """All-gathers tensors that agree in all but the first dimension: they are padded to the longest, then cut."""
        length = torch.tensor([tensor.shape[0]], device=tensor.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        longest = max(int(n) for n in lengths)
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])

    def split(self, groups: Sequence[range]) -> Collective:
        """Splits the default group. A group of one is alone, and the group of all is this one."""
        mine: Collective = Alone()
        for ranks in groups:
            if len(ranks) == self.size:
                return self
            if len(ranks) > 1:  # every worker takes part in making every group
                group = dist.new_group(list(ranks))
                if not isinstance(group, int):  # a number stands for a group of others
                    mine = ProcessGroup(group)
        return mine


def _calm_exchanges() -> None:
    """Makes gloo's thread of each process a batch thread, so that it gives way to the threads that it wakes.

    Between messages it asks the kernel again and again; whom it had woken waited for its time slice to end, which made
    three quarters of an exchange (2.7 ms, after 10 ms of work, of 0.34 MB between two workers with a core each; now 1).
    """
    if not sys.platform.startswith("linux"):
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # ended since, or not ours to change
            if (thread / "comm").read_text().strip() == GLOO_THREAD:
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))


def sum_all_(collective: Collective, tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over workers, in one exchange. The tensors share a type and a device."""
    if collective.size == 1:
        return
    joined = collective.sum_(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, joined.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def gather_text(collective: Collective, text: str, device: torch.device) -> list[str]:
    """Returns the text of each worker, in the order of ranks.

    `device` is that of the tensors that the collective carries.
    """
    said = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
    return bytes(collective.gather(said.to(device)).tolist()).decode().split("\0")[:-1]


def raise_together(collective: Collective, error: CondenseError | None, device: torch.device) -> None:
    """Where one worker failed, all raise its error (the lowest rank's), so that none is left waiting.

    Args:
        error: this worker's, or None.
        device: of the tensors that the collective carries.
    """
    mine = "" if error is None else "\x1f".join((type(error).__name__, error.problem, error.remedy))
    for failed in filter(None, gather_text(collective, mine, device)):
        kind, problem, remedy = failed.split("\x1f")
        made: CondenseError = getattr(errors, kind)(problem, remedy)
        raise made
