"""Distribution matching against a slow reference: one class and one image at a time."""

import pytest
import torch
from torch import Tensor, nn

from condense.errors import ConfigError
from condense.learners.networks import Learner, NetworkConfig, build_network, initialise_
from condense.matching.config import MatchingConfig, check_matching
from condense.matching.objectives import build_objective
from condense.matching.objectives.distribution import half_discrepancies

CLASSES, REAL, IPC, SHAPE = 3, 7, 2, (2, 8, 8)


def network(name: str, dtype: torch.dtype = torch.float64) -> Learner:
    built = build_network(NetworkConfig(name=name, width=5, depth=2), SHAPE, CLASSES)  # type: ignore[arg-type]
    initialise_(built, torch.Generator().manual_seed(1))
    return built.to(dtype).requires_grad_(False)


def images(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn((CLASSES, count, *SHAPE), generator=draws, dtype=torch.float64).to(dtype)


def slow_distance(net: Learner, real: Tensor, synthetic: Tensor) -> Tensor:
    means = []
    for group in (real, synthetic):
        total = torch.zeros(())
        for image in group:
            total = total + net.embed(image[None])[0]
        means.append(total / len(group))
    return sum(((a - b) ** 2 for a, b in zip(*means, strict=True)), torch.zeros(()))


def slow_discrepancy(net: Learner, real: Tensor, synthetic: Tensor) -> Tensor:
    """Half of the squared maximum mean discrepancy, pair by pair."""
    of_real, of_synthetic = ([net.embed(image[None])[0] for image in group] for group in (real, synthetic))
    pairs = [(a - b).square().sum() for i, a in enumerate(of_real) for j, b in enumerate(of_real) if i != j]
    width = torch.stack(pairs).mean()

    def mean(left: list[Tensor], right: list[Tensor]) -> Tensor:
        found = [width * torch.exp(-(a - b).square().sum() / width) for a in left for b in right]
        return torch.stack(found).mean()

    among = mean(of_real, of_real) + mean(of_synthetic, of_synthetic)
    return among / 2 - mean(of_real, of_synthetic)


@pytest.mark.parametrize("name", ["convnet", "mlp"])
@pytest.mark.parametrize("distance", [None, "mmd"])
def test_distances_and_image_gradients_equal_the_slow_loop(
    name: str, distance: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condense.workers.devices.CPU_NETWORK_BATCH", 3)
    net, classes = network(name), torch.arange(CLASSES)
    real, synthetic = images(REAL, 2), images(IPC, 3).requires_grad_()
    objective = build_objective("distribution", distance=distance, precision=torch.float64)
    embedded = torch.stack([net.embed(of_class) for of_class in real])
    target = embedded if distance == "mmd" else embedded.mean(1)
    torch.testing.assert_close(objective.target(net, real, classes), target.float())
    fast = objective.distances(net, target, synthetic, classes)
    (fast_gradient,) = torch.autograd.grad(fast.sum(), synthetic)
    reference = slow_discrepancy if distance == "mmd" else slow_distance
    slow = torch.stack([reference(net, real[label], synthetic[label]) for label in range(CLASSES)])
    (slow_gradient,) = torch.autograd.grad(slow.sum(), synthetic)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-9, atol=1e-12)
    assert bool((fast_gradient != 0).all())


@pytest.mark.parametrize("distance", [None, "mmd"])
def test_float32_image_gradients_stay_within_1e_4_of_float64(distance: str | None) -> None:
    classes, gradients = torch.arange(CLASSES), []
    for dtype in (torch.float32, torch.float64):
        net, synthetic = network("convnet", dtype), images(IPC, 3, dtype).requires_grad_()
        objective = build_objective("distribution", distance=distance, precision=dtype)
        distances = objective(net, images(REAL, 2, dtype), synthetic, classes)
        gradients.append(torch.autograd.grad(distances.sum(), synthetic)[0].double())
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-4


@pytest.mark.parametrize(("distance", "rounding"), [(None, 1e-9), ("mmd", 1e-5)])
def test_distance_is_zero_when_synthetic_is_real_whatever_the_order(distance: str | None, rounding: float) -> None:
    net, classes, real = network("convnet", torch.float32), torch.arange(CLASSES), images(REAL, 2, torch.float32)
    objective = build_objective("distribution", distance=distance, precision=torch.float32)
    shuffled = real[:, torch.randperm(REAL, generator=torch.Generator().manual_seed(0))]
    assert (
        objective(net, real, shuffled, classes).abs().max() < rounding * objective(net, real, -shuffled, classes).min()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3},
        {"inner_epochs": 2},
        {"learner_training": "real"},
        {"distance": "mse"},
        {"distance": "mmd", "real_batch": 1},
    ],
)
def test_options_that_a_fresh_network_cannot_use_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"objective distribution|distance mmd"):
        check_matching("distribution", MatchingConfig(**options))  # type: ignore[arg-type]
    check_matching("distribution", MatchingConfig())


def test_means_in_bfloat16_stay_near_those_in_float32() -> None:
    net, classes, draws = network("convnet", torch.float32), torch.arange(CLASSES), torch.Generator().manual_seed(4)
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draws)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=draws)
    float32, bfloat16 = (
        build_objective("distribution", distance=None, precision=precision).target(
            net, images(REAL, 2, torch.float32), classes
        )
        for precision in (torch.float32, torch.bfloat16)
    )
    assert (bfloat16 - float32).norm() < 0.02 * float32.norm()


def test_alike_real_images_give_no_nan() -> None:
    same = torch.ones((2, 4, 3))
    found = half_discrepancies(same, torch.randn((2, 2, 3), generator=torch.Generator().manual_seed(7)))
    assert bool(found.isfinite().all())
