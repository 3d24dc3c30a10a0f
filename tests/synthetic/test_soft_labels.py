"""Labels that are learned: their codes, their gradient, and that every user of a set sees the same ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.condensation.reproduce import evaluate_dataset
from condense.errors import ConfigError
from condense.matching.config import MatchingConfig
from condense.matching.objectives import build_objective
from condense.matching.objectives.gradient import DISTANCES, class_gradients
from condense.reports import console
from condense.synthetic.config import ImagesConfig
from condense.synthetic.dataset import CondensedDataset, CondensedImages, read_dataset, write_dataset
from condense.synthetic.soft_labels import from_codes, initial_logits, label_bits, label_codes, soft_labels
from condense.workers.checkpoints import LocalCheckpoints, NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import WorkerContext
from condense.workers.mesh import build_mesh, class_slice
from condense.workers.tracking import RecordingTracker
from tests.builders import engines, evaluations, learner_trainings
from tests.builders.gradients import CLASSES, IPC, REAL, images, network, slow_distance, slow_gradients
from tests.builders.runs import KilledAfter, KilledError, config, run
from tests.builders.threads import on_threads

SOFT = ("images_per_class=2", "images.labels=soft", "images.factor=2", "images.averaging=0.5")


def random_logits(*shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def saturated(classes: int, ipc: int) -> Tensor:
    return 100 * F.one_hot(torch.arange(classes), classes).double()[:, None].repeat(1, ipc, 1)


def slow_labels(logits: Tensor) -> Tensor:
    values = (logits - logits.detach().max()).exp()
    values = values + ((values * 255).round() / 255 - values).detach()
    return values / values.sum()


def test_a_label_is_a_distribution_whose_largest_code_is_255() -> None:
    logits = random_logits(5, 3, 7)
    codes = label_codes(logits)
    assert bool((codes.amax(2) == 255).all())
    torch.testing.assert_close(from_codes(codes).double(), soft_labels(logits), rtol=1e-6, atol=0)
    torch.testing.assert_close(soft_labels(logits).sum(2), torch.ones(5, 3, dtype=torch.float64))
    assert (soft_labels(logits) - logits.softmax(2)).abs().max() < 1 / 255


def test_on_the_grid_a_label_and_its_gradient_are_those_of_softmax() -> None:
    logits = (torch.tensor([255.0, 17, 3, 100], dtype=torch.float64) / 255).log()
    torch.testing.assert_close(soft_labels(logits), logits.softmax(0))
    found = torch.autograd.functional.jacobian(soft_labels, logits)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(lambda z: z.softmax(0), logits))


@pytest.mark.parametrize("class_count", [1, 2, 10, 1000])
def test_labels_start_at_nine_tenths_of_their_own_class_whoever_owns_it(class_count: int) -> None:
    whole = initial_logits(range(class_count), 2, class_count)
    own = whole.softmax(2).diagonal(dim1=0, dim2=2)
    assert class_count == 1 or (own - 0.9).abs().max() < 1e-6
    assert torch.equal(initial_logits(range(class_count - 1, class_count), 2, class_count)[0], whole[-1])


def test_logits_made_from_labels_give_the_same_labels() -> None:
    labels = from_codes(label_codes(random_logits(4, 2, 9)))
    assert torch.equal(from_codes(label_codes(initial_logits(range(4), 2, 9, labels))), labels)


@pytest.mark.parametrize("kind", list(DISTANCES))
@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_distances_and_gradients_of_labels_equal_a_slow_loop_over_classes(kind: str, name: str) -> None:
    net, classes = network(name), torch.arange(CLASSES)
    real, synthetic = images(REAL, 2), images(IPC, 3).requires_grad_()
    logits = random_logits(CLASSES, IPC, CLASSES).requires_grad_()
    objective = build_objective("gradient", distance=kind, precision=torch.float32)
    target = class_gradients(net, real, classes, create_graph=False)
    fast = objective.distances(net, target, synthetic, soft_labels(logits))
    fast_gradients = torch.autograd.grad(fast.sum(), [synthetic, logits])
    slow = []
    for label in range(CLASSES):
        wanted = slow_gradients(net, real[label], label, create_graph=False)
        losses = [
            -(slow_labels(z) * net(image[None])[0].log_softmax(0)).sum()
            for z, image in zip(logits[label], synthetic[label], strict=True)
        ]
        weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
        found = torch.autograd.grad(torch.stack(losses).mean(), weights, create_graph=True)
        slow.append(slow_distance(kind, wanted, [gradient.flatten(1) for gradient in found]))
    torch.testing.assert_close(fast, torch.stack(slow), rtol=1e-9, atol=1e-12)
    slow_ones = torch.autograd.grad(torch.stack(slow).sum(), [synthetic, logits])
    for fast_gradient, slow_gradient in zip(fast_gradients, slow_ones, strict=True):
        torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-7, atol=1e-12)
    assert bool((fast_gradients[1] != 0).all())


def test_labels_far_in_saturation_give_the_hard_distances_and_image_gradients() -> None:
    net, classes, synthetic = network(), torch.arange(CLASSES), images(IPC, 3).requires_grad_()
    objective = build_objective("gradient", distance="cosine", precision=torch.float32)
    target = class_gradients(net, images(REAL, 2), classes, create_graph=False)
    hard = objective.distances(net, target, synthetic, classes)
    soft = objective.distances(net, target, synthetic, soft_labels(saturated(CLASSES, IPC)))
    torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(distances.sum(), synthetic)[0] for distances in (soft, hard)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_one_hot_labels_train_the_learner_between_match_steps_as_hard_ones_do() -> None:
    classes = learner_trainings.CLASSES
    pictures = torch.rand((classes, 3, *learner_trainings.SHAPE), generator=torch.Generator().manual_seed(1))
    made = [learner_trainings.training(MatchingConfig(learner_batch=5)) for _ in range(2)]
    for one, soft in zip(made, (None, soft_labels(saturated(classes, 3)).float()), strict=True):
        one.start_(0, 0)
        one.train_on_synthetic_(pictures, 7, 2, soft)
    torch.testing.assert_close(
        learner_trainings.weights(made[0]), learner_trainings.weights(made[1]), rtol=1e-5, atol=1e-7
    )


def test_evaluation_learners_are_trained_on_the_cross_entropy_of_soft_labels() -> None:
    pictures, labels = evaluations.toy(20, 0)
    made = evaluations.evaluator(evaluations.QUICK)
    hard = made._trained(pictures, labels, range(1), None).parameters
    soft = made._trained(pictures, F.one_hot(labels, 2).float(), range(1), None).parameters
    for one, other in zip(soft, hard, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    blind = made.evaluate(pictures, torch.full((20, 2), 0.5), [evaluations.toy(200, 1)], learners=2, collective=Alone())
    taught = made.evaluate(
        pictures, F.one_hot(labels, 2) * 0.8 + 0.1, [evaluations.toy(200, 1)], learners=2, collective=Alone()
    )
    assert blind.mean < 90 < taught.mean


def soft_engine(owned: range = range(engines.CLASSES), collective: object = None, **options: object):  # type: ignore[no-untyped-def]
    """An engine whose soft labels have its images' learning rate, of plain descent."""
    plain = engines.PLAIN.model_copy(update={"labels": "soft", "label_learning_rate": 3.0, "factor": 2})
    mesh = build_mesh(collective or Alone())  # type: ignore[arg-type]
    return engines.engine(ipc=2, owned=owned, mesh=mesh, images=plain, **options)  # type: ignore[arg-type]


def test_an_outer_step_moves_labels_and_pixels_down_the_stated_loss() -> None:
    made = soft_engine(bits_weight=0, matching=MatchingConfig(real_batch=6, updates=1, steps=1))
    start = [parameter.detach().clone() for parameter in made.synthetic.parameters]
    losses: list[Tensor] = []
    original = made.replicas[0].objective.distances

    def watched(net: nn.Module, target: object, inputs: Tensor, labels: Tensor) -> Tensor:
        assert labels.shape == (engines.CLASSES, 2 * 4, engines.CLASSES)
        taught = made.synthetic.soft_labels().repeat_interleave(4, 1)
        assert torch.equal(labels, taught)
        losses.append(original(net, target, inputs.detach(), taught).mean())
        return original(net, target, inputs, labels)

    made.replicas[0].objective.distances = watched
    made.outer_step(0)
    (expected,) = torch.autograd.grad(losses[0], made.synthetic.parameters[-1])
    moved = [(a - b.detach()) for a, b in zip(start, made.synthetic.parameters, strict=True)]
    torch.testing.assert_close(moved[1], 3.0 * expected, rtol=1e-3, atol=1e-6)
    assert float(moved[0].abs().max()) > 0


def test_the_network_is_trained_on_the_labels_as_they_are_between_match_steps() -> None:
    made, taught = soft_engine(), []
    original = made.replicas[0].learner.train_on_synthetic_

    def watched(images: Tensor, match: int, epochs: int, soft: Tensor) -> None:
        assert images.shape[:2] == soft.shape[:2]
        assert torch.equal(soft, made.synthetic.soft_labels().repeat_interleave(4, 1))
        taught.append(soft)
        original(images, match, epochs, soft)

    made.replicas[0].learner.train_on_synthetic_ = watched
    made.outer_step(0)
    made.outer_step(1)
    assert len(taught) == 2
    assert not torch.equal(*taught)


def test_classes_taken_a_few_at_a_time_learn_the_labels_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [soft_engine() for _ in range(2)]
    made[0].outer_step(0)
    monkeypatch.setattr("condense.matching.replica.CLASSES_AT_ONCE", 3)
    made[1].outer_step(0)
    for a, b in zip(made[0].synthetic.parameters, made[1].synthetic.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_slices_learn_the_labels_of_one_worker() -> None:
    def learned(collective: object) -> list[Tensor]:
        owned = class_slice(engines.CLASSES, collective.rank, collective.size)  # type: ignore[attr-defined]
        made = soft_engine(owned, collective)
        made.outer_step(0)
        return [parameter.detach() for parameter in made.synthetic.parameters]

    parts = on_threads(3, learned)
    for whole, *own in zip(learned(Alone()), *parts, strict=True):
        torch.testing.assert_close(torch.cat(own), whole, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def whole() -> CondensedDataset:
    return run(config(*SOFT))


def test_two_workers_gather_the_set_that_one_makes(whole: CondensedDataset) -> None:
    def condensed(collective: object) -> CondensedDataset:
        context = WorkerContext(
            collective,  # type: ignore[arg-type]
            RecordingTracker(),
            NoCheckpoints(),
            lambda at: None,
            torch.device("cpu"),
        )
        return condense(config(*SOFT), context)

    made = on_threads(2, condensed)
    assert made[0].provenance["content_digest"] == made[1].provenance["content_digest"]
    assert whole.soft_labels is not None
    torch.testing.assert_close(made[0].soft_labels, whole.soft_labels, rtol=0, atol=2 / 255)


def test_a_killed_and_resumed_run_ends_with_the_labels_of_an_uninterrupted_one(
    whole: CondensedDataset, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(config(*SOFT), KilledAfter(tmp_path, 2))
    resumed = run(config(*SOFT), LocalCheckpoints(tmp_path))
    assert resumed.provenance["content_digest"] == whole.provenance["content_digest"]
    assert torch.equal(resumed.soft_labels, whole.soft_labels)


def test_the_file_holds_the_labels_exactly_and_reproduces_the_accuracy(whole: CondensedDataset, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", whole)
    stored = read_dataset(path)
    assert whole.soft_labels is not None
    assert whole.soft_labels.shape == (20, 10)
    assert whole.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert len(whole.soft_labels.unique(dim=0)) == 20  # learned: at first they were alike within a class
    assert torch.equal(stored.soft_labels, whole.soft_labels)
    assert stored.provenance["content_digest"] == whole.provenance["content_digest"]
    assert evaluate_dataset(stored).evaluation.mean == whole.provenance["evaluation"]["accuracy_mean"]
    pairs = CondensedImages(path)
    assert torch.equal(pairs[5][1], whole.soft_labels[1])  # the second canvas's second image
    assert pairs.targets[4 * 19] == 9


def test_the_labels_bits_are_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("condense.condensation.share.REAL_BITS_IMAGES", 10)
    measured = run(config("data.image_size=32", "images.labels=soft", "outer_steps=1", "evaluation.test=false"))
    bits = measured.provenance["bits"]
    assert bits["labels_per_set"] == label_bits(measured.soft_labels) == 8 * 10 * 10
    assert measured.bits is not None
    assert bits["per_set"] == float(measured.bits.sum()) + 800
    facts = {**measured.provenance, "controls": {}}
    console.show_result(facts, 10, 10)
    assert f"whole set {bits['per_set']:,.0f} bits (soft labels 800)" in capsys.readouterr().out


def test_hard_labels_cost_nothing_and_are_in_no_column() -> None:
    hard = run(config("outer_steps=1", "evaluation.test=false"))
    assert hard.soft_labels is None
    assert hard.provenance["bits"]["labels_per_set"] == 0


def from_set(path: Path, *overrides: str) -> RunConfig:
    still = ("images.learning_rate=1e-9", "images.label_learning_rate=1e-9", "evaluation.test=false")
    return config(*SOFT, "outer_steps=1", f"images.init=set:{path}", *still, *overrides)


def test_a_run_from_a_set_starts_from_its_soft_labels_where_it_has_them(
    whole: CondensedDataset, tmp_path: Path
) -> None:
    path = write_dataset(tmp_path / "soft.parquet", whole)
    assert torch.equal(run(from_set(path)).soft_labels, whole.soft_labels)
    hard = run(from_set(path, "images.labels=hard"))
    assert hard.soft_labels is None
    again = run(from_set(write_dataset(tmp_path / "hard.parquet", hard)))
    assert torch.equal(again.soft_labels, from_codes(label_codes(initial_logits(range(10), 2, 10))).flatten(0, 1))


def test_an_objective_without_labels_refuses_to_learn_them_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"objective distribution .* images.labels=soft"):
        open_checked(config("images.labels=soft", "objective=distribution"))
    open_checked(config("objective=distribution"))
    with pytest.raises(ConfigError, match=r"images\.labels"):
        config("images.labels=fuzzy")


def test_labels_and_their_rate_are_part_of_what_a_run_is() -> None:
    names = [config(*given).identity() for given in ((), SOFT, (*SOFT, "images.label_learning_rate=0.2"))]
    assert len(set(names)) == 3
    assert ImagesConfig(recipe="dc").labels == "hard"
