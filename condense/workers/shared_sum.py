"""Sums tensors over worker processes of one machine, through memory that they share (shared_sum.c).

Workers that train one network together exchange its gradients at every step. Two processes with a core each do that in
0.1 ms. Through gloo, whose threads hand a message on from one to the next, it takes 1 ms and more.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from condense.errors import ClusterError
from condense.kernels import compiled

TIMEOUT_S = 1800  # as long as torch.distributed waits


class SharedSum:
    """Sums in the memory that all processes share. Every process makes the same calls in the same order."""

    def __init__(self, memory: mmap.mmap, rank: int, size: int, timeout_s: float) -> None:
        self._memory, self._rank, self._size, self._timeout_s = memory, rank, size, timeout_s
        self._meetings = ctypes.c_uint32(0)

    def takes(self, tensor: Tensor) -> bool:
        """Returns whether a tensor can be summed: contiguous float32 on the CPU. It is so on all workers or on none."""
        return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()

    def sum_(self, tensor: Tensor) -> None:
        """Replaces `tensor` by its sum over workers, the same to the last bit on each.

        Raises:
            ClusterError: another worker has not come in half an hour.
        """
        library = compiled.load_library()
        assert library is not None
        whole = ctypes.c_char.from_buffer(self._memory)
        numbers = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel())
        place = ctypes.byref(whole), ctypes.c_int64(self._rank), ctypes.c_int64(self._size)
        wait = ctypes.c_int64(int(self._timeout_s * 1e9))
        if not library.shared_sum(*numbers, *place, ctypes.byref(self._meetings), wait):
            raise ClusterError(
                f"another worker on this machine has not answered for {self._timeout_s:g} s",
                "look at its log; the same command goes on from the last checkpoint",
            )


def share_memory(
    rank: int, size: int, gather_text: Callable[[str], list[str]], timeout_s: float = TIMEOUT_S
) -> SharedSum | None:
    """Returns memory that the workers of a group have in common.

    It is None where they are not all on one machine, or where any of them lacks the kernels. All of them call it.

    Args:
        gather_text: what each worker says, in the order of ranks.
        timeout_s: how long a sum waits for another worker.
    """
    if not sys.platform.startswith("linux"):
        return None
    # A process can open what another has open if both have the same kernel and see the same process numbers.
    machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    library = compiled.load_library()
    mine = f"{machine} {library is not None}"
    if any(other != mine for other in gather_text(mine)) or library is None:
        return None
    library.shared_sum_bytes.restype = ctypes.c_int64
    length = library.shared_sum_bytes(ctypes.c_int64(size))
    memory, first = None, -1
    if rank == 0:
        with suppress(OSError):  # a system that forbids it; then the path is none
            first = os.memfd_create("condense-sums")
            os.ftruncate(first, length)
    path = gather_text(f"/proc/{os.getpid()}/fd/{first}")[0]
    with suppress(OSError), open(path, "r+b") as file:  # another user's process refuses
        memory = mmap.mmap(file.fileno(), length)
    opened = gather_text(str(memory is not None))
    if first >= 0:
        os.close(first)
    return None if memory is None or "False" in opened else SharedSum(memory, rank, size, timeout_s)
