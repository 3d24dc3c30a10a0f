"""Sums, gathers and agreement between real processes."""

import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from condense.errors import SourceError
from condense.workers.collective import GLOO_THREAD, Alone, ProcessGroup, raise_together
from condense.workers.mesh import build_mesh

CPU = torch.device("cpu")


def policies() -> list[int]:
    """Of the threads that carry gloo's messages."""
    threads = Path("/proc/self/task").iterdir()
    return [os.sched_getscheduler(int(t.name)) for t in threads if (t / "comm").read_text().strip() == GLOO_THREAD]


def _worker(rank: int, file: str) -> None:
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    group = ProcessGroup()
    if sys.platform.startswith("linux"):
        assert policies() == [os.SCHED_BATCH]
    assert group.sum_(torch.tensor([1.0 + rank])).tolist() == [3.0]
    # One row on worker 0, two on worker 1.
    mine = torch.arange(2 * (rank + 1)).view(rank + 1, 2)
    assert group.gather(mine).tolist() == [[0, 1], [0, 1], [2, 3]]
    raise_together(group, None, CPU)
    failure = SourceError("row 7 of a.parquet cannot be read", "copy it again") if rank == 1 else None
    with pytest.raises(SourceError, match="row 7") as gather_text:
        raise_together(group, failure, CPU)
    assert gather_text.value.remedy == "copy it again"
    dist.destroy_process_group()


def test_two_processes_sum_gather_unequal_rows_and_fail_together() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (str(Path(folder) / "store"),), nprocs=2)


def _mesh_worker(rank: int, file: str) -> None:
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=4, timeout=timedelta(seconds=60))
    mesh = build_mesh(ProcessGroup(), 2)  # slices 0 and 1 of replica 0, then of replica 1
    if sys.platform.startswith("linux"):
        assert set(policies()) == {os.SCHED_BATCH}
    number, replica = mesh.over_slices.rank, mesh.over_replicas.rank
    assert (number, replica, mesh.own) == (rank % 2, rank // 2, range(rank // 2, rank // 2 + 1))
    assert mesh.over_slices.gather(torch.full((number + 1,), rank)).tolist() == [[0, 1, 1], [2, 3, 3]][replica]
    parts = [torch.tensor([1.0 + rank]), torch.tensor([10.0 * rank])]
    for wait in [mesh.over_replicas.begin_sum_(part) for part in parts]:
        wait()
    assert [float(part) for part in parts] == [2 + 2 * number + 2, 10.0 * (2 * number + 2)]
    assert float(mesh.everyone.sum_(torch.tensor(1.0))) == 4
    dist.destroy_process_group()


def test_four_processes_are_two_slices_of_two_replicas() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_mesh_worker, (str(Path(folder) / "store"),), nprocs=4)


def test_one_process_is_the_identity() -> None:
    alone, rows = Alone(), torch.ones(3)
    assert alone.sum_(rows) is rows
    assert alone.gather(rows) is rows
    raise_together(alone, None, CPU)
    with pytest.raises(SourceError):
        raise_together(alone, SourceError("bad"), CPU)
