"""Sums of real processes through memory that they share."""

import os
import sys
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from condense.errors import ClusterError
from condense.kernels import compiled as kernels
from condense.workers.collective import ProcessGroup, gather_text
from condense.workers.shared_sum import SharedSum, share_memory

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or kernels.load_library() is None, reason="needs Linux and a C compiler"
)
COUNTS = (1, 2, 1000, 262144, 700001)  # less than one number each, and more than one piece


def numbers(rank: int, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(rank))


def _worker(rank: int, file: str, size: int) -> None:
    store = f"file://{file}"
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    group = ProcessGroup()
    with patch.object(dist, "all_reduce", side_effect=AssertionError("not through gloo")):
        for repeat in range(50):
            for count in COUNTS if repeat == 0 else COUNTS[:3]:
                expected = numbers(0, count)
                for other in range(1, size):
                    expected += numbers(other, count)  # in the order of ranks, so equal to the last bit on each
                assert torch.equal(group.sum_(numbers(rank, count)), expected)
        with pytest.raises(AssertionError):
            group.sum_(torch.zeros(1, dtype=torch.float64))
    strided = torch.full((2, 3), 1.0).t()
    assert torch.equal(group.sum_(strided), torch.full((3, 2), float(size)))
    _one_lacks_the_kernels(group)
    _memory_is_forbidden(group)
    _one_does_not_come(group)
    dist.destroy_process_group()


def share(group: ProcessGroup, **options: float) -> SharedSum | None:
    return share_memory(group.rank, group.size, partial(gather_text, group, device=torch.device("cpu")), **options)


def _one_lacks_the_kernels(group: ProcessGroup) -> None:
    library = None if group.rank == 1 else kernels.load_library()
    with patch.object(kernels, "load_library", return_value=library):
        assert share(group) is None


def _memory_is_forbidden(group: ProcessGroup) -> None:
    with patch.object(os, "memfd_create", side_effect=PermissionError):
        assert share(group) is None


def _one_does_not_come(group: ProcessGroup) -> None:
    """It says so when the time is up, also after it has gone to sleep."""
    shared = share(group, timeout_s=0.3)
    assert isinstance(shared, SharedSum)
    started = time.monotonic()
    if group.rank > 0:
        with pytest.raises(ClusterError, match="another worker on this machine"):
            shared.sum_(torch.zeros(3))
        assert 0.3 <= time.monotonic() - started < 10


@pytest.mark.parametrize("size", [2, 3])
def test_processes_of_one_machine_sum_in_shared_memory(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (str(Path(folder) / "store"), size), nprocs=size)
