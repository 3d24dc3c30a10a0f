"""Augmentation in matching, the learner between match steps, the choice of real batches: against plain loops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense import seeding
from condense.errors import ConfigError
from condense.learners.augment import TOGETHER, augment, augment_classes, draw_transform, draw_transforms
from condense.learners.networks import NetworkConfig, build_network
from condense.matching.batches import EVERY, RealBatches, choice_at, representatives
from condense.matching.config import MatchingConfig, check_matching
from condense.matching.learner_training import LearnerTraining, cutmix
from condense.workers.mesh import class_slice
from tests.builders.learner_trainings import CLASSES, NORMALISATION, SEED, SHAPE, real_images, training, weights
from tests.builders.threads import Threads, on_threads


@pytest.mark.parametrize("augmentation", ["dsa", "color-crop-cutout"])
def test_each_class_is_transformed_by_its_own_draw_alone(augmentation: str) -> None:
    images = torch.randn((6, 3, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    draws = [
        draw_transforms(augmentation, torch.Generator().manual_seed(label), 1)  # type: ignore[arg-type]
        for label in range(6)
    ]
    changed = augment_classes(images, draws)
    assert len({draw[0].kind for draw in draws}) > 1 or augmentation != "dsa"
    for label in range(6):
        for image, found in zip(images[label], changed[label], strict=True):
            expected = image[None]
            for draw in draws[label]:
                expected = augment(expected, draw)
            torch.testing.assert_close(found, expected[0])


def test_one_of_six_or_the_three_together_and_no_flip_where_told_so() -> None:
    draws = torch.Generator().manual_seed(0)
    assert draw_transforms("none", draws, 1) == ()
    assert tuple(draw.kind for draw in draw_transforms("color-crop-cutout", draws, 1)) == TOGETHER
    assert "flip" not in {draw_transforms("dsa", draws, 1, flip=False)[0].kind for _ in range(60)}


def test_training_on_the_synthetic_set_equals_a_plain_optimiser() -> None:
    matching = MatchingConfig(
        learner_batch=5, learner_momentum=0.9, learner_weight_decay=0.01, learner_rate=0.05, augment="dsa"
    )
    made = training(matching)
    made.start_(0, 0)
    plain = build_network(NetworkConfig(width=6, depth=2), SHAPE, CLASSES)
    plain.load_state_dict(made.network.state_dict())
    images = torch.rand((CLASSES, 3, *SHAPE), generator=torch.Generator().manual_seed(1))
    made.train_on_synthetic_(images, 7, epochs=2)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        draws = seeding.generator(SEED, "inner-order", step=7, index=epoch)
        for rows in torch.randperm(CLASSES * 3, generator=draws).split(5):
            inputs = augment((images.flatten(0, 1)[rows] - 0.5) / 0.25, draw_transform(draws, len(rows), flip=False))
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs), rows // 3).backward()
            optimizer.step()
    for a, b in zip(made.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["synthetic", "real", "pool"])
def test_slices_train_the_same_network_as_one_worker(kind: str) -> None:
    matching = MatchingConfig(
        learner_training=kind,  # type: ignore[arg-type]
        learner_images=40,
        learner_batch=16,
        learner_momentum=0.9,
        learner_cutmix=kind != "synthetic",
        augment="color-crop-cutout",
        pool=2,
        pool_steps=2,
    )
    images = torch.rand((CLASSES, 3, *SHAPE), generator=torch.Generator().manual_seed(1))

    def train(of: LearnerTraining, owned: range) -> Tensor:
        of.start_(1, 4)
        if kind == "synthetic":
            of.train_on_synthetic_(images[owned.start : owned.stop], 4, epochs=2)
        elif kind == "real":
            of.train_on_real_(4)
        return weights(of)

    whole = train(training(matching), range(CLASSES))

    def work(workers: Threads) -> Tensor:
        owned = class_slice(CLASSES, workers.rank, workers.size)
        return train(training(matching, owned, workers), owned)

    for found in on_threads(3, work):
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_training_on_real_images_lowers_their_loss() -> None:
    made = training(MatchingConfig(learner_training="real", learner_images=40, learner_rate=0.1))
    made.start_(0, 0)
    images = NORMALISATION.apply(torch.cat(real_images()).float() / 255)
    labels = torch.cat([torch.full((12 + label,), label) for label in range(CLASSES)])

    def loss() -> float:
        return float(F.cross_entropy(made.network(images), labels))

    before = loss()
    for match in range(30):
        made.train_on_real_(match)
    assert loss() < 0.8 * before


def test_a_pool_gives_the_same_few_trained_networks_disturbed_by_a_share_of_their_norm() -> None:
    def pooled(noise: float) -> Callable[[int], Tensor]:
        made = training(
            MatchingConfig(learner_training="pool", pool=2, pool_steps=1, learner_images=8, pool_noise=noise)
        )

        def take(match: int) -> Tensor:
            made.start_(0, match)
            return weights(made)

        return take

    exact, disturbed = pooled(0.0), pooled(0.5)
    taken = [exact(match) for match in range(8)]
    assert len({tuple(one.tolist()) for one in taken}) == 2
    change = (disturbed(3) - taken[3]).norm() / taken[3].norm()
    assert 0.2 < change < 0.5  # norms and biases, which are not disturbed, count in the norm too
    assert torch.equal(disturbed(3), pooled(0.5)(3))


def test_cutmix_pastes_one_box_and_counts_its_area() -> None:
    zeros, ones = torch.zeros((2, 1, 16, 16)), torch.ones((2, 1, 16, 16))
    for seed in range(20):
        mixed, kept = cutmix(zeros, ones, torch.Generator().manual_seed(seed))
        assert float(mixed.mean()) == pytest.approx(1 - kept)
        assert torch.equal(mixed[0], mixed[1])


def test_representatives_are_one_row_of_each_cluster() -> None:
    draws = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    features = torch.cat([centres, centres + 0.1, centres - 0.1]) + 0.01 * torch.randn((9, 2), generator=draws)
    chosen = features[representatives(features, 3)]
    assert (torch.cdist(centres, chosen) < 0.2).sum(1).tolist() == [1, 1, 1]


def test_representative_batches_are_real_images_of_their_class() -> None:
    real = real_images()
    batches = RealBatches(real, list(range(CLASSES)), 4, SEED)
    made = training(MatchingConfig())
    made.start_(0, 0)
    chosen = batches.representative(0, made.network, NORMALISATION)
    assert chosen.shape == (CLASSES, 4, *SHAPE)
    for label, images in enumerate(real):
        assert all(bool((images == image).flatten(1).all(1).any()) for image in chosen[label])
    few = RealBatches(real, list(range(CLASSES)), 30, SEED)
    assert few.representative(0, made.network, NORMALISATION).shape == (CLASSES, 30, *SHAPE)


def test_representatives_are_chosen_every_ten_match_steps_at_a_step_that_a_resumed_run_knows() -> None:
    assert [choice_at(match, 1) for match in (0, 9, 10, 25)] == [0, 0, 10, 20]
    assert [choice_at(match, 4) for match in (0, 11, 12, 23)] == [0, 0, 12, 12]
    assert [choice_at(match, 25) for match in (0, 10, 24, 25, 49)] == [0, 10, 20, 25, 45]
    assert EVERY == 10


@pytest.mark.parametrize(
    ("options", "named"),
    [({"learner_cutmix": True}, "learner_cutmix"), ({"learner_training": "real", "inner_epochs": 3}, "inner_epochs")],
)
def test_options_without_effect_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=f"matching.{named}"):
        check_matching("gradient", MatchingConfig(**options))  # type: ignore[arg-type]
