"""Keeps freed memory for the next step, and says which settings to lower where memory runs out.

Without the first, a step on a CPU takes up to twice as long.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from condense.errors import CapacityError, reason_of

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # from malloc.h

# For the environment of a process that computes in a second thread, as a Ray Train worker does. glibc gives such a
# thread a heap of pieces of 64 MB and returns each piece as soon as it is free: a step on 100 MB tensors took a quarter
# longer than outside of Ray. With one heap for all threads, `keep_freed_memory` works for them all.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of returning it to the system after every large tensor.

    Without it, half of the time of a ConvNet step goes into page faults (measured: 5.3 s against 2.8 s for the
    gradients of 640 images).

    Returns:
        Whether it took effect; on systems without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0))
    )


@contextmanager
def explain_out_of_memory(under_way: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turns an allocation that fails in the enclosed block into an error that says which settings to lower.

    Args:
        under_way: returns what the block was doing, and the settings whose lower values need less memory for it.

    Raises:
        CapacityError: a GPU, or the machine, had no memory left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        doing, settings = under_way()
        reason = reason_of(error)
        raise CapacityError(
            f"out of memory in {doing}: {reason}",
            f"lower {settings}; `condense estimate CONFIG` says what a config needs. The last checkpoint is intact",
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Returns whether a GPU (torch.OutOfMemoryError), or the machine for a tensor of the CPU, refused memory."""
    # PyTorch's CPU allocator raises a plain RuntimeError with its name in it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
