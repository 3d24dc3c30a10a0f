"""Ray Train for real: the same images as in process, from one worker and from two, and after a worker is killed."""

import os
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

from condense.condensation.config import RunConfig
from condense.condensation.in_process import condense_here
from condense.errors import ConfigError
from condense.settings import resolve
from condense.synthetic.dataset import CondensedDataset
from condense.workers.context import Progress
from condense.workers.tracking import NullTracker
from tests.builders.processes import descendants

pytestmark = pytest.mark.ray

SETTINGS = (
    "images_per_class=2",
    "data.image_size=16",
    "network.width=8",
    "network.depth=2",
    "matching.real_batch=8",
    "matching.updates=1",
    "matching.inner_epochs=3",
    "outer_steps=6",
    "checkpoint_every=1",
    "evaluation.every=6",
    "evaluation.learners=2",
    "evaluation.validation_images=20",
    "evaluation.controls=false",
    "cpus_per_worker=1",
)


def config(storage: Path, *overrides: str) -> RunConfig:
    return resolve(RunConfig, None, (*SETTINGS, f"storage={storage}", *overrides))


def ignore(at: Progress) -> None:
    assert at.done <= at.total


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    from cluster.ray_connection import connected

    with connected():
        yield


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> CondensedDataset:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return condense_here(config(tmp_path_factory.mktemp("alone"), "workers=0"), NullTracker(), ignore)
    finally:
        torch.set_num_threads(threads)


def train(of: RunConfig, progress=ignore) -> CondensedDataset:  # type: ignore[no-untyped-def]
    from cluster.trainer import train as train_on_ray

    return train_on_ray(of, 10, NullTracker(), progress)


def test_one_worker_that_is_evaluated_beside_training_makes_the_same_bytes_as_this_process(
    in_process: CondensedDataset, tmp_path: Path
) -> None:
    told: list[Progress] = []
    made = train(config(tmp_path, "workers=1", "evaluation.beside=true"), told.append)
    followed = [(at.stage, at.values["validation/step"]) for at in told if "validation/accuracy" in at.values]
    assert followed == [("condensing", 6)]
    assert made.provenance["content_digest"] == in_process.provenance["content_digest"]
    assert made.provenance["evaluation"]["accuracies"] == in_process.provenance["evaluation"]["accuracies"]
    assert made.provenance["validation"] == in_process.provenance["validation"]
    assert not [pid for pid in descendants() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_two_workers_make_the_same_images_within_two_levels_and_survive_a_kill(
    in_process: CondensedDataset, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(at: Progress) -> None:
        if at.stage == "condensing" and at.done >= 2 and not killed:
            workers = [pid for pid in descendants() if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text()]
            assert len(workers) == 2
            killed.append(workers[1])
            os.kill(workers[1], signal.SIGKILL)

    made = train(config(tmp_path, "workers=2"), kill_one)
    assert killed
    # Slices change the shapes of the same sums; float32 rounding moves an 8-bit level here and there.
    difference = (made.images.int() - in_process.images.int()).abs()
    assert int(difference.max()) <= 2
    assert float((difference > 0).float().mean()) < 0.02
    assert made.provenance["source"]["digest"] == in_process.provenance["source"]["digest"]


def test_two_workers_with_a_replica_each_make_the_images_of_one_process_with_both(tmp_path: Path) -> None:
    alone = condense_here(config(tmp_path / "alone", "workers=0", "replicas=2"), NullTracker(), ignore)
    made = train(config(tmp_path / "two", "workers=2", "replicas=2"))
    difference = (made.images.int() - alone.images.int()).abs()
    assert int(difference.max()) <= 2
    assert float((difference > 0).float().mean()) < 0.02
    assert made.provenance["source"]["digest"] == alone.provenance["source"]["digest"]


def test_more_workers_than_the_cluster_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the cluster has"):
        train(config(tmp_path, "workers=10", "cpus_per_worker=100"))


@pytest.mark.parametrize("workers", ["workers=3", "workers=0", "workers=auto"])
def test_workers_that_cannot_grow_to_max_workers_are_refused(tmp_path: Path, workers: str) -> None:
    with pytest.raises(ConfigError, match="max_workers is at least workers"):
        config(tmp_path, workers, "max_workers=2")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_a_worker_keeps_the_memory_of_large_tensors_and_rounds_no_float32(tmp_path: Path) -> None:
    from cluster.ray_workers import on_workers

    def page_faults(context: object) -> list[int]:
        import resource

        import torch

        counts = []
        # Three of 40 MB, in pages of 4 KB: 10,000 faults for each whose memory was given back. Below 32 MB glibc may
        # learn by itself to keep it.
        for _ in range(20):
            _kept = [torch.empty(10_000_000).fill_(1) for _ in range(3)]
            del _kept
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        assert not torch.backends.cudnn.allow_tf32  # PyTorch's default
        return [after - before for before, after in pairwise(counts)]

    # Most of them, for what Ray's own threads allocate may lie in the way once, and the tensor moves.
    faults = on_workers(page_faults, "faults", config(tmp_path, "workers=1"), 1, NullTracker(), ignore)
    assert median(faults) < 1000, faults
