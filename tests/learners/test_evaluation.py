"""Recipes, stacked learners, augmentation, controls."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from condense.kernels import compiled as kernels
from condense.learners import evaluation
from condense.learners.augment import STRATEGIES, Draw, augment, crop_scale_rotate, draw_transform
from condense.learners.networks import MLP, ConvNet, NetworkConfig, build_network, initialise_
from condense.learners.recipes import RECIPES, Recipe
from condense.reports.card import spread
from condense.synthetic import controls
from condense.workers.collective import Alone
from condense.workers.devices import local_device
from tests.builders.evaluations import MLPS, QUICK, SHAPE, evaluator, toy


def test_learners_trained_on_a_set_classify_the_test_images() -> None:
    found = evaluator(QUICK).evaluate(*toy(20, 0), [toy(200, 1)], learners=3, collective=Alone())
    assert found.mean > 95
    assert len(found.accuracies) == 3


def test_on_a_gpu_learners_may_round_to_tf32_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default, back after the test
    device, seen = local_device(), []
    before = torch.backends.cudnn.allow_tf32

    def held_out() -> Iterator[tuple[Tensor, Tensor]]:
        seen.append(torch.backends.cudnn.allow_tf32)
        yield toy(40, 1)

    images, labels = (part.to(device) for part in toy(20, 0))
    evaluator(QUICK).evaluate(
        images,
        labels,
        held_out(),
        learners=1,
        collective=Alone(),
        on_epoch=lambda: seen.append(torch.backends.cudnn.allow_tf32),
    )
    assert seen == [True] * (QUICK.epochs + 1)
    assert not before
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("augmentation", ["crop-scale-rotate", "dsa"])
def test_the_same_seed_gives_the_same_accuracies_whatever_else_is_trained(
    augmentation: Literal["crop-scale-rotate", "dsa"],
) -> None:
    def accuracies(learners: int) -> tuple[float, ...]:
        hard = Recipe("short", epochs=1, augmentation=augmentation)
        return evaluator(hard).evaluate(*toy(20, 0), [toy(201, 1)], learners=learners, collective=Alone()).accuracies

    assert accuracies(3)[:2] == accuracies(2)


@pytest.mark.parametrize("network", [MLPS, NetworkConfig(width=8, depth=1)], ids=["mlp", "convnet"])
def test_stacked_learners_equal_the_same_learners_one_by_one(
    network: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "load_library", lambda: None)  # as on a GPU, where learners are stacked
    images, labels = toy(30, 0)
    made = evaluator(QUICK, network)
    together = made._trained(images, labels, range(3), None).parameters
    for index in range(3):
        alone = made._trained(images, labels, range(index, index + 1), None).parameters
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_[index], rtol=1e-4, atol=1e-5)
    one_by_one = made.evaluate(images, labels, [toy(200, 1)], learners=3, collective=Alone())
    monkeypatch.setattr(evaluation, "_at_once", lambda learners, device: learners)
    stacked = made.evaluate(images, labels, [toy(200, 1)], learners=3, collective=Alone())
    assert stacked.accuracies == pytest.approx(one_by_one.accuracies, abs=0.5)  # one image of the 200


def test_the_recipes_are_the_published_ones() -> None:
    assert {name: (recipe.epochs, recipe.augmentation) for name, recipe in RECIPES.items()} == {
        "dc": (300, "none"),
        "dc-augmented": (1000, "crop-scale-rotate"),
        "dsa": (1000, "dsa"),
    }
    assert {(r.learning_rate, r.momentum, r.weight_decay, r.batch_size) for r in RECIPES.values()} == {
        (0.01, 0.9, 5e-4, 256)
    }


def test_the_convnet_has_the_published_number_of_parameters() -> None:
    network = build_network(NetworkConfig(), (3, 32, 32), 10)
    assert isinstance(network, ConvNet)
    assert sum(parameter.numel() for parameter in network.parameters()) == 320_010


def test_initialisation_depends_on_the_generator_alone() -> None:
    made = [build_network(NetworkConfig(name="mlp", width=4), SHAPE, 2) for _ in range(2)]
    torch.manual_seed(0)
    initialise_(made[0], torch.Generator().manual_seed(9))
    torch.manual_seed(1)
    initialise_(made[1], torch.Generator().manual_seed(9))
    assert isinstance(made[0], MLP)
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_transform_is_differentiable_and_keeps_the_shape(kind: str) -> None:
    images = torch.rand((4, 3, 16, 16), requires_grad=True)
    changed = augment(images, Draw(kind, torch.rand((4, 4), generator=torch.Generator().manual_seed(2))))
    assert changed.shape == images.shape
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert bool(gradient.isfinite().all())
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_one_draw_for_all_is_the_same_transform_of_each(kind: str) -> None:
    draw = Draw(kind, torch.rand((1, 4), generator=torch.Generator().manual_seed(3)))
    image = torch.rand((1, 1, 12, 12))
    torch.testing.assert_close(augment(image.expand(3, -1, -1, -1), draw), augment(image, draw).expand(3, -1, -1, -1))


def test_the_middle_of_every_geometric_draw_is_the_identity() -> None:
    images = torch.rand((2, 1, 16, 16))
    for kind in ("rotate", "crop"):
        torch.testing.assert_close(augment(images, Draw(kind, torch.full((1, 4), 0.5))), images, rtol=1e-4, atol=1e-5)


def test_crop_scale_rotate_shifts_scales_or_rotates_each_image_about_its_middle() -> None:
    image = torch.zeros((1, 1, 41, 41))
    image[..., 14:27, 16:25] = 1  # an upright rectangle in the middle
    changed = crop_scale_rotate(image.expand(600, -1, -1, -1), torch.Generator().manual_seed(0))[:, 0]
    ink = (changed > 0.5).float()
    middle = torch.arange(41.0) - 20
    height, width = ink.amax(2).sum(1), ink.amax(1).sum(1)
    at = torch.stack([(ink * middle[:, None]).sum((1, 2)), (ink * middle).sum((1, 2))], 1) / ink.sum((1, 2))[:, None]

    shifted = (height == 13) & (width == 9) & (at.abs().amax(1) > 0.5)
    torch.testing.assert_close(at[shifted], at[shifted].round())
    assert set(at[shifted].flatten().int().tolist()) == set(range(-4, 5))
    rectangle = ink.sum((1, 2)) == height * width
    scaled = rectangle & ~shifted & ((height != 13) | (width != 9))
    assert (float(height[scaled].min()), float(height[scaled].max())) == (11, 15)
    assert (float(width[scaled].min()), float(width[scaled].max())) == (7, 11)
    transposed = ~rectangle
    assert float(width[transposed].max()) >= 14  # 45 degrees: (13 + 9) / sqrt(2), cut at half a pixel
    for kind in (shifted, scaled, transposed):
        assert 0.15 < float(kind.float().mean()) < 0.4


def test_flip_is_never_drawn_where_it_would_change_the_class() -> None:
    draws = torch.Generator().manual_seed(0)
    kinds = {draw_transform(draws, 1, flip=False).kind for _ in range(100)}
    assert kinds == set(STRATEGIES) - {"flip"}


def real_classes() -> list[Tensor]:
    draws = torch.Generator().manual_seed(4)
    return [torch.randint(256, (9, 1, 16, 16), generator=draws, dtype=torch.uint8) for _ in range(3)]


@pytest.mark.parametrize("choose", [controls.random_real, controls.kmeans_real])
def test_real_controls_take_distinct_real_images_and_do_not_depend_on_the_slice(choose) -> None:  # type: ignore[no-untyped-def]
    real = real_classes()
    chosen = choose(real, range(3), 4, seed=1)
    assert chosen.shape == (3, 4, 1, 16, 16)
    for label, images in enumerate(real):
        rows = [int((images == image).flatten(1).all(1).nonzero()[0]) for image in chosen[label]]
        assert len(set(rows)) == 4
    assert torch.equal(choose(real[1:2], range(1, 2), 4, seed=1)[0], chosen[1])


def deviation(images: Tensor) -> float:
    """In place of bits: it grows with JPEG's quality and falls with blur."""
    return float(images.float().std())


@pytest.mark.parametrize(
    ("at_bits", "degrade", "between"),
    [
        (controls.jpeg_at_bits, controls.jpeg, 30),
        (controls.blur_at_bits, controls.blur, 0.9),
    ],
)
def test_a_control_at_equal_bits_reaches_them_or_says_that_it_does_not(
    at_bits: Any, degrade: Any, between: Any
) -> None:
    images = torch.stack(real_classes())[:, :2]
    target = deviation(degrade(images, between))
    found = at_bits(images, target, deviation)
    assert found.reached
    assert deviation(found.images) == pytest.approx(target, rel=0.02)
    assert found.bits_per_dim == pytest.approx(deviation(found.images))
    missed = at_bits(images, 0.5 * min(deviation(degrade(images, end)) for end in (1, 3)), deviation)
    assert not missed.reached
    assert missed.bits_per_dim == deviation(missed.images)


def test_a_blur_of_a_point_is_the_gaussian_and_keeps_flat_images() -> None:
    point = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    point[..., 10, 10] = 255
    blurred = controls.blur(point, 1.0)[0, 0].float()
    assert blurred[10, 10] == pytest.approx(255 / (2 * math.pi), abs=1)
    assert blurred[10, 11] == pytest.approx(255 / (2 * math.pi) * math.exp(-0.5), abs=1)
    flat = torch.full((2, 3, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(controls.blur(flat, 2.5), flat)


def test_one_learner_has_no_spread() -> None:
    one = evaluation.Evaluation((71.0,), QUICK, NetworkConfig(), 0)
    assert one.std is None
    assert one.description()["accuracy_std"] is None
    assert spread(one.mean, one.std) == "71.0"
    assert spread(71.0, 1.25) == "71.0 ± 1.2"
