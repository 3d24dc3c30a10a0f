"""Gradient matching against a slow reference: one class, one backward pass and one distance at a time."""

import pytest
import torch

from condense.matching.objectives import build_objective
from condense.matching.objectives.gradient import DISTANCES, class_gradients, real_gradients
from tests.builders.gradients import CLASSES, IPC, REAL, images, network, slow_distance, slow_gradients


@pytest.mark.parametrize("kind", list(DISTANCES))
@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_distances_and_image_gradients_equal_the_per_class_loop(kind: str, name: str) -> None:
    net, classes = network(name), torch.arange(CLASSES)
    real, synthetic = images(REAL, 2), images(IPC, 3).requires_grad_()
    objective = build_objective("gradient", distance=kind, precision=torch.float32)
    fast = objective.distances(net, class_gradients(net, real, classes, create_graph=False), synthetic, classes)
    (fast_gradient,) = torch.autograd.grad(fast.sum(), synthetic)
    slow = []
    for label in range(CLASSES):
        target = slow_gradients(net, real[label], label, create_graph=False)
        slow.append(slow_distance(kind, target, slow_gradients(net, synthetic[label], label, create_graph=True)))
    (slow_gradient,) = torch.autograd.grad(torch.stack(slow).sum(), synthetic)
    torch.testing.assert_close(fast, torch.stack(slow), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("width", [5, 32])
def test_float32_image_gradients_stay_within_1e_4_of_float64(width: int) -> None:
    classes, gradients = torch.arange(CLASSES), []
    for dtype in (torch.float32, torch.float64):
        net = network(dtype=dtype, width=width)
        synthetic = images(IPC, 3, dtype).requires_grad_()
        objective = build_objective("gradient", distance="cosine", precision=torch.float32)
        target = class_gradients(net, images(REAL, 2, dtype), classes, create_graph=False)
        distances = objective.distances(net, target, synthetic, classes)
        gradients.append(torch.autograd.grad(distances.sum(), synthetic)[0].double())
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-4


def test_real_gradients_in_pieces_equal_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    net, classes, real = network(dtype=torch.float32), torch.arange(CLASSES), images(REAL, 2, torch.float32)
    whole = class_gradients(net, real, classes, create_graph=False)
    monkeypatch.setattr("condense.workers.devices.CPU_NETWORK_BATCH", 2 * CLASSES)
    for a, b in zip(real_gradients(net, real, classes, torch.float32).tensors, whole.tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [5, 32])
def test_bfloat16_real_gradients_point_where_float32_ones_do(width: int) -> None:
    net, classes, real = network(dtype=torch.float32, width=width), torch.arange(CLASSES), images(64, 2, torch.float32)
    objective = build_objective("gradient", distance="cosine", precision=torch.bfloat16)
    exact = class_gradients(net, real, classes, create_graph=False)
    for a, b in zip(objective.target(net, real, classes).tensors, exact.tensors, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.995


@pytest.mark.parametrize("compiler", ["a compiler", "none"])
@pytest.mark.parametrize("name", ["gradient", "distribution"])
@pytest.mark.parametrize("width", [5, 32])
def test_bfloat16_image_gradients_point_where_float32_ones_do(
    width: int, name: str, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler == "none":
        monkeypatch.setattr("condense.kernels.compiled.load_library", lambda: None)
    net, classes, real = network(dtype=torch.float32, width=width), torch.arange(CLASSES), images(64, 2, torch.float32)
    found = []
    for precision in (torch.float32, torch.bfloat16):
        synthetic = images(IPC, 3, torch.float32).requires_grad_()
        distances = build_objective(name, distance=None, precision=precision)(net, real, synthetic, classes)
        found.append(torch.autograd.grad(distances.sum(), synthetic)[0].flatten(1))
    assert torch.nn.functional.cosine_similarity(*found).min() > 0.98


def test_distance_is_zero_when_synthetic_is_real_and_ignores_the_order_of_images() -> None:
    net, classes, real = network(), torch.arange(CLASSES), images(REAL, 2)
    objective = build_objective("gradient", distance="mse", precision=torch.float64)
    shuffled = real[:, torch.randperm(REAL, generator=torch.Generator().manual_seed(0))]
    target = class_gradients(net, real, classes, create_graph=False)
    assert objective.distances(net, target, shuffled, classes).abs().max() < 1e-12


def test_gradient_reaches_every_pixel() -> None:
    net, classes = network(), torch.arange(CLASSES)
    synthetic = images(IPC, 3).requires_grad_()
    objective = build_objective("gradient", distance="cosine", precision=torch.float64)
    target = class_gradients(net, images(REAL, 2), classes, create_graph=False)
    (gradient,) = torch.autograd.grad(objective.distances(net, target, synthetic, classes).sum(), synthetic)
    assert bool((gradient != 0).all())


def test_a_row_without_gradient_has_distance_one_and_no_nan() -> None:
    net = network()
    with torch.no_grad():
        net.convolutions[0].weight[0] = 0  # type: ignore[index,union-attr]
        net.norms[0].weight[0] = 0  # type: ignore[index,union-attr]
        net.norms[0].bias[0] = -1  # type: ignore[index,union-attr]  # the unit is dead: no gradient reaches its row
    classes, synthetic = torch.arange(CLASSES), images(IPC, 3).requires_grad_()
    target = class_gradients(net, images(REAL, 2), classes, create_graph=False)
    found = class_gradients(net, synthetic, classes, create_graph=True)
    dead = DISTANCES["cosine"](
        target._replace(kept=(target.tensors[0][:, :1],)), found._replace(kept=(found.tensors[0][:, :1],))
    )
    assert dead.tolist() == [1, 1, 1]
    (gradient,) = torch.autograd.grad(DISTANCES["cosine"](target, found).sum(), synthetic)
    assert bool(gradient.isfinite().all())
