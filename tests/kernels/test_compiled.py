"""The compiled block and the closed-form gradients against PyTorch's layers and automatic differentiation."""

import copy
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense.kernels import autograd as fused
from condense.kernels import compiled as kernels
from condense.kernels import convolution as convolutions
from condense.kernels import first_block as thin
from condense.kernels import norm_relu_pool as norms
from condense.learners.networks import ConvNet, NetworkConfig, build_network, initialise_
from condense.matching.objectives.closed_form import Product, convnet_gradients, smaller_as_product
from condense.matching.objectives.gradient import ClassGradients, class_gradients, real_gradients

needs_compiler = pytest.mark.skipif(
    not kernels.available(torch.empty(0), torch.float32, 1), reason="no C compiler: PyTorch's layers are used"
)
EPS = 1e-5


def block(activation: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(activation, len(gamma), gamma, beta, EPS)), 2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_compiler
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (28, 28)])
def test_the_block_and_its_gradient_equal_pytorchs_layers(size: tuple[int, int]) -> None:
    activation = (3 + 2 * drawn(3, 5, *size)).contiguous(memory_format=torch.channels_last).requires_grad_()
    gamma, beta = drawn(5, seed=1).requires_grad_(), drawn(5, seed=2).requires_grad_()
    expected = block(activation, gamma, beta)
    gradient = drawn(*expected.shape, seed=3)
    wanted = torch.autograd.grad(expected, (activation, gamma, beta), gradient)
    gamma, beta = gamma.detach(), beta.detach()
    pooled, mean, rstd = norms.norm_relu_pool(activation.detach(), gamma, beta, EPS)
    torch.testing.assert_close(pooled, expected.detach(), rtol=1e-4, atol=1e-5)
    found = norms.norm_relu_pool_gradient(activation.detach(), gradient, gamma, beta, mean, rstd)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@needs_compiler
def test_the_block_in_bfloat16_is_its_float32_rounded_once() -> None:
    activation = drawn(2, 6, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    gamma, beta = drawn(6, seed=1), drawn(6, seed=2)
    exact, mean, rstd = norms.norm_relu_pool(activation.float(), gamma, beta, EPS)
    pooled, _, _ = norms.norm_relu_pool(activation, gamma, beta, EPS)
    assert torch.equal(pooled, exact.bfloat16())
    gradient = drawn(*pooled.shape, seed=3).bfloat16()
    wanted, _, _ = norms.norm_relu_pool_gradient(activation.float(), gradient.float(), gamma, beta, mean, rstd)
    found, _, _ = norms.norm_relu_pool_gradient(activation, gradient, gamma, beta, mean, rstd)
    assert torch.equal(found, wanted.bfloat16())


@needs_compiler
@pytest.mark.parametrize("outputs", [5, 70, 128])
@pytest.mark.parametrize("size", [(1, 4, 4), (2, 7, 5), (3, 12, 12)])
def test_the_first_block_and_its_weight_gradient_equal_pytorchs_layers(
    size: tuple[int, int, int], outputs: int
) -> None:
    images, bias = drawn(3, *size), drawn(outputs, seed=4)
    weight = drawn(outputs, size[0], 3, 3, seed=5).requires_grad_()
    gamma, beta = drawn(outputs, seed=1).requires_grad_(), drawn(outputs, seed=2).requires_grad_()
    expected = block(F.conv2d(images, weight, bias, padding=1), gamma, beta)
    gradient = drawn(*expected.shape, seed=3)
    wanted = torch.autograd.grad(expected, (weight, gamma, beta), gradient)
    gamma, beta = gamma.detach(), beta.detach()
    pooled, mean, rstd = thin.first_block(images, weight.detach(), bias, gamma, beta, EPS)
    torch.testing.assert_close(pooled, expected.detach(), rtol=1e-3, atol=1e-4)
    found = thin.first_block_gradient(images, gradient, weight.detach(), bias, gamma, beta, mean, rstd)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_the_first_block_in_bfloat16_rounds_its_activations_and_sums_in_float32() -> None:
    images, weight, bias = drawn(2, 1, 8, 8).bfloat16(), drawn(6, 1, 3, 3, seed=5), drawn(6, seed=4)
    gamma, beta = drawn(6, seed=1), drawn(6, seed=2)
    activation = F.conv2d(images.float(), weight, bias, padding=1).bfloat16()
    expected, _, _ = norms.norm_relu_pool(activation.contiguous(memory_format=torch.channels_last), gamma, beta, EPS)
    pooled, _, _ = thin.first_block(images, weight, bias, gamma, beta, EPS)
    torch.testing.assert_close(pooled, expected, rtol=1e-2, atol=1e-2)


def trained_network(channels: int = 2, width: int = 12) -> ConvNet:
    """With norms away from the identity, as after training."""
    network = build_network(NetworkConfig(width=width, depth=3), (channels, 12, 12), 4)
    assert isinstance(network, ConvNet)
    initialise_(network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _, norm in network.blocks:
            norm.weight.add_(0.3 * drawn(width, seed=2))
            norm.bias.add_(0.3 * drawn(width, seed=3))
    return network.requires_grad_(False)


@needs_compiler
@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize(("channels", "width"), [(1, 12), (3, 12), (3, 32)])
def test_closed_form_gradients_equal_automatic_differentiation_in_float64(
    channels: int, width: int, product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condense.matching.objectives.closed_form.PIECE", 3)
    monkeypatch.setattr("condense.matching.objectives.closed_form.smaller_as_product", lambda *_: product)
    images, classes = drawn(3, 7, channels, 12, 12), torch.tensor([2, 0, 3])
    kept = convnet_gradients(trained_network(channels, width), images, classes)
    assert isinstance(kept[-1], Product) == product
    found = ClassGradients(kept).tensors
    net = trained_network(channels, width).double()
    exact = class_gradients(net, images.double(), classes, create_graph=False).tensors
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() / b.norm() < 1e-5


def test_gradients_of_a_thousand_classes_are_kept_as_products_and_of_ten_are_not() -> None:
    assert smaller_as_product(64, 1000, 2048)
    assert not smaller_as_product(64, 10, 2048)


@needs_compiler
@pytest.mark.parametrize(("channels", "width"), [(1, 12), (3, 12), (3, 32)])
def test_a_learners_compiled_logits_and_their_gradients_equal_its_own_layers(channels: int, width: int) -> None:
    network = trained_network(channels, width).requires_grad_(True)
    images, labels = drawn(9, channels, 12, 12, seed=6), torch.arange(9) % 4
    exact = copy.deepcopy(network).double()
    wanted = torch.autograd.grad(F.cross_entropy(exact(images.double()), labels), list(exact.parameters()))
    for logits in (network(images), network.first_order(images)):
        torch.testing.assert_close(logits.double(), exact(images.double()), rtol=1e-4, atol=1e-5)
        found = torch.autograd.grad(F.cross_entropy(logits, labels), list(network.parameters()))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5)


def gradients_of_gradients(
    made: Callable[[Tensor, Tensor, Tensor], Tensor], size: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Of sum(v * gradient at z) of a block, at z and at the gradient from above."""
    activation, gamma, beta = 3 + 2 * drawn(3, 5, *size), drawn(5, seed=1), drawn(5, seed=2)
    above, v = drawn(3, 5, size[0] // 2, size[1] // 2, seed=3), drawn(3, 5, *size, seed=4)
    z, g = activation.to(dtype).requires_grad_(), above.to(dtype).requires_grad_()
    (to_z,) = torch.autograd.grad(made(z, gamma.to(dtype), beta.to(dtype)), z, g, create_graph=True)
    return torch.autograd.grad((to_z * v.to(dtype)).sum(), (z, g))


def fused_block(activation: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return fused.norm_relu_pool(activation, gamma, beta, EPS)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), pytest.param(torch.float32, 1e-3, marks=needs_compiler)]
)
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (12, 12)])
def test_gradients_of_the_blocks_gradients_equal_automatic_differentiation_in_float64(
    size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    assert kernels.available(torch.empty(0), dtype, 5) == (dtype == torch.float32)
    found = gradients_of_gradients(fused_block, size, dtype)
    wanted = gradients_of_gradients(block, size, torch.float64)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance / 10)


def test_gradients_of_the_blocks_gradients_without_a_compiler_round_bfloat16_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("condense.kernels.compiled.load_library", lambda: None)
    found = gradients_of_gradients(fused_block, (12, 12), torch.bfloat16)
    wanted = gradients_of_gradients(block, (12, 12), torch.float64)
    for a, b in zip(found, wanted, strict=True):
        assert F.cosine_similarity(a.double().flatten(), b.flatten(), dim=0) > 0.999


MANY = [(1, 3, 7, 7, 16, 80), (3, 2, 5, 9, 32, 16), (2, 5, 4, 4, 48, 64), (2, 1, 2, 3, 16, 16)]
FEW = [(1, 3, 7, 7, 1, 80), (3, 2, 5, 9, 3, 12), (2, 5, 4, 4, 64, 2), (2, 1, 1, 3, 4, 4), (1, 4, 5, 5, 4, 130)]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("groups", "each", "height", "width", "inputs", "outputs"), [*MANY, *FEW])
def test_convolutions_and_what_matching_takes_of_them_equal_pytorchs_in_float64(
    groups: int, each: int, height: int, width: int, inputs: int, outputs: int, threads: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr("condense.kernels.compiled.WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images = drawn(groups * each, inputs, height, width)
    weights, bias = drawn(groups, outputs, inputs, 3, 3, seed=1), drawn(outputs, seed=2)
    above, v = drawn(groups * each, outputs, height, width, seed=3), drawn(*weights.shape, seed=4)
    assert convolutions.can_convolve(images, weights)

    def exactly(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.cat([F.conv2d(part, own, b, padding=1) for part, own in zip(x.split(each), w, strict=True)])

    def taken(convolved: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The convolution, its gradients, and the gradients of one of these."""
        x, w, b, g = (whole.to(dtype).requires_grad_() for whole in (images, weights, bias, above))
        made = convolved(x, w, b)
        first = torch.autograd.grad(made, (x, w, b), g, create_graph=True)
        return [made, *first, *torch.autograd.grad((first[1] * v.to(dtype)).sum(), (x, g))]

    for found, wanted in zip(taken(fused.convolution, torch.float32), taken(exactly, torch.float64), strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@needs_compiler
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (3, 48), (32, 1)])
def test_convolutions_in_bfloat16_are_within_2_percent_of_float32(inputs: int, outputs: int) -> None:
    images, weights = drawn(4, inputs, 7, 9), 0.1 * drawn(2, outputs, inputs, 3, 3, seed=1)
    above = drawn(4, outputs, 7, 9, seed=2)
    images, weights, above = (whole.bfloat16() for whole in (images, weights, above))
    if not convolutions.can_convolve(images, weights):
        pytest.skip("the processor does not multiply bfloat16")
    found = convolutions.convolution(images, weights, None), convolutions.weight_gradients(images, above, 2)
    wanted = (
        convolutions.convolution(images.float(), weights.float(), None),
        convolutions.weight_gradients(images.float(), above.float(), 2),
    )
    for a, b in zip(found, wanted, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()


@needs_compiler
def test_gradients_that_the_kernels_do_not_have_are_refused() -> None:
    network, images = trained_network(1).requires_grad_(True), drawn(3, 1, 12, 12)
    for loss, refusal in (
        (network.first_order(images).square().sum(), "once_differentiable"),
        (network(images).square().sum(), "a norm's own parameters"),
    ):
        gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        with pytest.raises(RuntimeError, match=refusal):
            gradients[0].sum().backward()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder without kernels; what this process has loaded is asked for anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.load_library.cache_clear()
    yield tmp_path / "cache"
    kernels.load_library.cache_clear()


def put_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a C compiler that does as the script says before all others."""
    folder.mkdir()
    (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


LOAD = "from condense.kernels.compiled import load_library; raise SystemExit(load_library() is None)"


@needs_compiler
@pytest.mark.parametrize("damage", ["cut short", "empty", "one byte changed"])
def test_a_damaged_library_in_the_cache_is_built_again_and_not_loaded(
    cache: Path, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    put_compiler(tmp_path / "bin", f'exec {compiler} -O0 "$@" -O0', monkeypatch)  # seconds less
    assert kernels.load_library() is not None
    (library,) = cache.rglob("*.so")
    whole = library.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    library.unlink()  # this process has it mapped
    library.write_bytes(
        {"cut short": whole[: len(whole) // 3], "empty": b"", "one byte changed": bytes(changed)}[damage]
    )
    ended = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True)
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
    assert hashlib.sha256(library.read_bytes()[:-32]).digest() == library.read_bytes()[-32:]
    assert list(cache.rglob("*.*")) == [library]


def test_a_compiler_that_fails_is_one_warning_and_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_compiler(tmp_path / "bin", "echo 'cc: out of order' >&2; exit 1", monkeypatch)
    for _ in range(2):
        assert not kernels.available(torch.empty(0), torch.float32, 1)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "cc: out of order" in warning.message
    assert "two to three times as long" in warning.message
    assert "digest differs" in warning.message
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_a_cache_that_cannot_be_written_is_one_warning_before_anything_is_compiled(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_compiler(tmp_path / "bin", f"touch {tmp_path}/compiled; exit 1", monkeypatch)
    cache.write_text("no folder")
    assert kernels.load_library() is None
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert str(cache) in warning.message
    assert "set XDG_CACHE_HOME" in warning.message
    assert "digest differs" in warning.message
    assert not (tmp_path / "compiled").exists()


def test_a_user_without_a_home_is_one_warning(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # in a container: no entry among the users
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/cc")
    assert kernels.load_library() is None
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "home directory" in warning.message


def test_without_a_compiler_pytorchs_layers_are_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not kernels.available(torch.empty(0), torch.float32, 1)
    images, classes = drawn(3, 7, 2, 12, 12), torch.tensor([2, 0, 3])
    found = real_gradients(trained_network(), images, classes, torch.float32).tensors
    exact = class_gradients(trained_network(), images, classes, create_graph=False).tensors
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_more_channels_than_the_kernels_hold_are_left_to_pytorch() -> None:
    assert not kernels.available(torch.empty(0), torch.float32, kernels.MOST_CHANNELS + 1)
