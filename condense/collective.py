"""Sums and gathers over the workers of a run; the identity where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from condense import errors
from condense.errors import CondenseError, ConfigError


class Collective(Protocol):
    """What the algorithm needs of the other workers. Every worker must call the same methods in the same order."""

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor`, in place, as the sum over workers."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' tensors joined along the first dimension, in rank order; their lengths may differ."""


class Alone:
    """One process."""

    rank = 0
    size = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor` itself."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """`tensor` itself."""
        return tensor


class ProcessGroup:
    """The default torch.distributed group (gloo on CPU, NCCL on GPU), which somebody else has initialised."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum_(self, tensor: Tensor) -> Tensor:
        """All-reduce."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """All-gather of tensors that agree in all but the first dimension: padded to the longest, then cut."""
        length = torch.tensor([tensor.shape[0]], device=tensor.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        longest = max(int(n) for n in lengths)
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])


def sum_all_(collective: Collective, tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its sum over workers, in one exchange; the tensors share a type and a device."""
    if collective.size == 1:
        return
    joined = collective.sum_(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, joined.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def agree(collective: Collective, error: CondenseError | None, device: torch.device) -> None:
    """Where one worker failed, all raise its error (the lowest rank's), so that none is left waiting.

    Args:
        error: this worker's, or None.
        device: of the tensors that the collective carries.
    """
    told = b"" if error is None else "\x1f".join((type(error).__name__, error.problem, error.remedy)).encode() + b"\0"
    mine = torch.frombuffer(bytearray(told), dtype=torch.uint8) if told else torch.empty(0, dtype=torch.uint8)
    joined = bytes(collective.gather(mine.to(device)).tolist())
    if joined:
        kind, problem, remedy = joined.split(b"\0")[0].decode().split("\x1f")
        made: CondenseError = getattr(errors, kind)(problem, remedy)
        raise made


def class_slice(classes: int, rank: int, size: int) -> range:
    """The contiguous classes that worker `rank` of `size` owns; slice lengths differ by at most one.

    Raises:
        ConfigError: more workers than classes.
    """
    if size > classes:
        raise ConfigError(f"{size} workers for {classes} classes: a worker would own none", f"set workers <= {classes}")
    return range(rank * classes // size, (rank + 1) * classes // size)
