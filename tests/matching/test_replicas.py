"""Network replicas: what their mean is, and that no layout over workers changes it; workers are threads here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.data.normalisation import Normalisation
from condense.data.slices import load_slice
from condense.data.sources import open_source
from condense.errors import ConfigError, NonFiniteError, SourceError
from condense.matching.config import MatchingConfig
from condense.settings import resolve
from condense.synthetic.dataset import CondensedDataset
from condense.workers.checkpoints import Checkpoints, LocalCheckpoints, NoCheckpoints
from condense.workers.collective import Alone, Collective
from condense.workers.context import WorkerContext
from condense.workers.mesh import Mesh, build_mesh, check_mesh, class_slice, mesh_shape, most_workers
from condense.workers.tracking import RecordingTracker
from tests.builders.engines import CLASSES, PLAIN, QuadraticDensity, engine
from tests.builders.runs import KilledAfter, KilledError
from tests.builders.threads import Threads, on_threads

LAYOUTS = [(2, 2), (4, 2), (3, 2), (3, 3)]  # workers and replicas: 1 x 2, 2 x 2, three slices, 1 x 3
TINY = (
    "data.image_size=16",
    "network.name=mlp",
    "network.width=16",
    "network.depth=1",
    "images_per_class=2",
    "matching.real_batch=8",
    "matching.updates=1",
    "matching.inner_epochs=2",
    "outer_steps=3",
    "checkpoint_every=1",
    "evaluation.every=3",
    "evaluation.learners=2",
    "evaluation.validation_images=20",
    "evaluation.controls=false",
    "workers=0",
)


def single(replica: int) -> Mesh:
    """One replica alone, as if there were no others."""
    return Mesh(Alone(), Alone(), Alone(), replicas=1, own=range(replica, replica + 1))


def test_the_image_gradient_is_the_mean_over_replicas_and_counts_bits_once() -> None:
    matching = MatchingConfig(real_batch=6, updates=1, steps=1, augment="dsa")
    made = [
        engine(ipc=2, images=PLAIN, matching=matching, mesh=mesh)
        for mesh in (build_mesh(Alone(), 2), single(0), single(1))
    ]
    results = [one.outer_step(0) for one in made]
    both, first, second = (one.synthetic.alpha.detach() for one in made)
    assert not torch.equal(first, second)
    torch.testing.assert_close(both, (first + second) / 2, rtol=1e-5, atol=1e-6)
    assert results[0].distance == pytest.approx((results[1].distance + results[2].distance) / 2)
    assert results[0].bits_per_dim == pytest.approx(results[1].bits_per_dim)


@pytest.mark.parametrize("kind", ["synthetic", "soft", "real", "pool"])
@pytest.mark.parametrize(("workers", "replicas"), LAYOUTS)
def test_an_outer_step_moves_what_is_learned_alike_in_every_layout(
    workers: int, replicas: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condense.matching.replica.CLASSES_AT_ONCE", 3)  # so that a slice of all four has two parts
    matching = MatchingConfig(
        real_batch=6,
        updates=2,
        steps=2,
        inner_epochs=2 if kind in ("synthetic", "soft") else None,
        learner_training="synthetic" if kind == "soft" else kind,  # type: ignore[arg-type]
        learner_images=20,
        pool=2,
        pool_steps=1,
        real_batch_choice="representative" if kind == "real" else "random",
    )

    images = PLAIN.model_copy(update={"labels": "soft", "factor": 2}) if kind == "soft" else PLAIN

    def moved(collective: Collective) -> tuple[range, list[Tensor], tuple[float, float]]:
        mesh = build_mesh(collective, replicas)
        owned = class_slice(CLASSES, mesh.over_slices.rank, mesh.over_slices.size)
        made = engine(ipc=3, images=images, matching=matching, owned=owned, mesh=mesh)
        result = [made.outer_step(step) for step in range(2)][-1]
        learned = [parameter.detach() for parameter in made.synthetic.parameters]
        return owned, learned, (result.distance, result.bits_per_dim)

    _, whole, numbers = moved(Alone())
    for owned, learned, of_worker in on_threads(workers, moved):
        for part, of_all in zip(learned, whole, strict=True):
            torch.testing.assert_close(part, of_all[owned.start : owned.stop], rtol=1e-4, atol=1e-5)
        assert of_worker == pytest.approx(numbers, rel=1e-4)


def test_the_workers_of_a_slice_share_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    original = QuadraticDensity.log_prob

    def watched(self: QuadraticDensity, x: Tensor) -> Tensor:
        measured.append(len(x))
        return original(self, x)

    monkeypatch.setattr(QuadraticDensity, "log_prob", watched)

    def step(workers: Threads) -> float:
        mesh = build_mesh(workers, 2)
        made = engine(owned=class_slice(CLASSES, mesh.over_slices.rank, mesh.over_slices.size), mesh=mesh)
        return made.outer_step(0).bits_per_dim

    found = on_threads(2 * CLASSES, step)
    assert measured == [1] * CLASSES  # one image a slice: one of its two workers has none
    assert found == pytest.approx([engine().outer_step(0).bits_per_dim] * len(found))


def test_a_gradient_of_one_replica_that_is_not_finite_stops_all_workers() -> None:
    def step(workers: Threads) -> str:
        made = engine(mesh=build_mesh(workers, 2))
        if workers.rank == 1:
            made.replicas[0].normalisation = Normalisation((0.5,), (0.0,))
        with pytest.raises(NonFiniteError, match="not finite at outer step 0") as told:
            made.outer_step(0)
        return str(told.value)

    assert all("class" in told for told in on_threads(2, step))


def config(*overrides: str) -> RunConfig:
    return resolve(RunConfig, None, (*TINY, *overrides))


def run(of: RunConfig, collective: Collective, keep: Checkpoints | None = None) -> CondensedDataset:
    cpu = torch.device("cpu")
    return condense(of, WorkerContext(collective, RecordingTracker(), keep or NoCheckpoints(), lambda at: None, cpu))


@pytest.fixture(scope="module")
def in_process() -> CondensedDataset:
    return run(config("replicas=2"), Alone())


def alike(made: CondensedDataset, other: CondensedDataset) -> bool:
    """Within the rounding of sums in another order: an 8-bit level here and there."""
    difference = (made.images.int() - other.images.int()).abs()
    return int(difference.max()) <= 2 and float((difference > 0).float().mean()) < 0.02


@pytest.mark.parametrize("workers", [2, 4, 3])
def test_a_run_gives_the_same_set_and_facts_in_every_layout(workers: int, in_process: CondensedDataset) -> None:
    for made in on_threads(workers, lambda of_all: run(config("replicas=2"), of_all)):
        assert alike(made, in_process)
        assert made.labels.tolist() == in_process.labels.tolist()
        assert made.provenance["source"] == in_process.provenance["source"]
        assert made.provenance["normalisation"]["mean"] == pytest.approx(in_process.provenance["normalisation"]["mean"])
        assert len(made.provenance["evaluation"]["accuracies"]) == 2


def test_replicas_decide_the_result_and_belong_to_the_identity(in_process: CondensedDataset) -> None:
    assert not alike(run(config(), Alone()), in_process)
    assert config("replicas=2").identity() != config().identity()


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 2)])
def test_a_checkpoint_is_resumed_in_another_layout(
    before: int, after: int, in_process: CondensedDataset, tmp_path: Path
) -> None:
    def killed(collective: Collective) -> None:
        with pytest.raises(KilledError):
            run(config("replicas=2"), collective, KilledAfter(tmp_path, 2))

    def resumed(collective: Collective) -> CondensedDataset:
        return run(config("replicas=2"), collective, LocalCheckpoints(tmp_path))

    on_threads(before, killed)
    assert alike(on_threads(after, resumed)[0], in_process)


def test_a_failure_to_read_on_one_worker_is_raised_by_those_of_all_replicas() -> None:
    class Unreadable:
        """A source that one worker cannot read."""

        def load_classes(self, classes: range) -> list[Tensor]:
            raise SourceError("row 7 cannot be read", "copy it again")

    def read(workers: Threads) -> None:
        source = Unreadable() if workers.rank == 3 else open_source("digits", config().data, seed=0)
        with pytest.raises(SourceError, match="row 7"):
            load_slice(source, range(2), build_mesh(workers, 2).everyone, torch.device("cpu"))  # type: ignore[arg-type]

    on_threads(4, read)


@pytest.mark.parametrize(
    ("workers", "replicas", "shape"),
    [(1, 1, (1, 1)), (4, 1, (4, 1)), (1, 2, (1, 1)), (2, 2, (1, 2)), (3, 2, (3, 1)), (6, 2, (3, 2)), (2, 4, (2, 1))],
)
def test_workers_that_are_a_multiple_of_the_replicas_spread_them(
    workers: int, replicas: int, shape: tuple[int, int]
) -> None:
    assert mesh_shape(workers, replicas) == shape


def test_every_replica_of_every_slice_is_computed_once() -> None:
    def place(workers: Threads) -> tuple[int, int]:
        mesh = build_mesh(workers, 3)
        assert len(mesh.own) == 1
        assert mesh.over_replicas.rank == mesh.own.start
        return mesh.over_slices.rank, mesh.own.start

    assert sorted(on_threads(6, place)) == [(number, replica) for number in range(2) for replica in range(3)]


def test_workers_without_a_class_are_refused_in_words_of_the_mesh() -> None:
    check_mesh(10, 20, 2)
    with pytest.raises(ConfigError, match="22 workers with replicas=2 are 11 slices for 10 classes"):
        check_mesh(10, 22, 2)
    with pytest.raises(ConfigError, match="11 workers with replicas=2 are 11 slices for 10 classes"):
        check_mesh(10, 2, 2, most=12)  # a group that grows passes through every number
    check_mesh(10, 2, 2, most=10)
    assert [most_workers(n, 10, 2) for n in (0, 1, 11, 12, 15, 64)] == [1, 1, 10, 12, 14, 20]


def test_a_run_refuses_them_before_it_starts() -> None:
    with pytest.raises(ConfigError, match="21 workers with replicas=2"):
        open_checked(config("workers=21", "replicas=2"))
