"""What every Density must do; each implementation's test class inherits this and gives a `density` fixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from condense.flow.bits import Density, bits_per_dim
from condense.pixels import dequantise, to_float
from condense.seeding import generator


def edge_images(shape: tuple[int, int, int]) -> Tensor:
    """uint8 images where densities break: constant ones, one with a border, one of noise, a checkerboard."""
    constant = [torch.full(shape, level, dtype=torch.uint8) for level in (0, 128, 255)]
    border = torch.zeros(shape, dtype=torch.uint8)
    border[:, 2:-2, 2:-2] = 255
    noise = torch.randint(256, shape, generator=generator(0, "noise"), dtype=torch.uint8)
    checkerboard = torch.zeros(shape, dtype=torch.uint8)
    checkerboard[:, ::2, ::2] = checkerboard[:, 1::2, 1::2] = 255
    return torch.stack([*constant, border, noise, checkerboard])


class DensityContract:
    @pytest.fixture
    def density(self) -> Density:
        raise NotImplementedError

    def test_is_a_density(self, density: Density) -> None:
        assert isinstance(density, Density)

    def test_gives_one_value_for_each_image(self, density: Density) -> None:
        assert density.log_prob(dequantise(to_float(edge_images(density.shape)))).shape == (6,)

    def test_value_and_gradient_are_finite_on_edge_images(self, density: Density) -> None:
        for noise in (0.0, 0.5, 1 - 2**-8):
            x = dequantise(to_float(edge_images(density.shape)), noise).requires_grad_()
            log_prob = density.log_prob(x)
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
            assert log_prob.isfinite().all()
            assert gradient.isfinite().all()

    def test_an_image_costs_the_same_alone_and_among_others(self, density: Density) -> None:
        images = to_float(edge_images(density.shape))
        together = bits_per_dim(density, images)
        alone = torch.cat([bits_per_dim(density, image[None]) for image in images])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)

    def test_gradient_is_the_slope_of_the_value(self, density: Density) -> None:
        noise = torch.rand(density.shape, generator=generator(1, "noise"))
        x = (noise - 0.5)[None].requires_grad_()
        (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), x)
        direction = gradient / gradient.norm().clamp_min(1e-12)
        step = 1e-3
        with torch.no_grad():
            slope = (density.log_prob(x + step * direction) - density.log_prob(x - step * direction)) / (2 * step)
        torch.testing.assert_close(slope[0], gradient.norm(), rtol=0.05, atol=0.5)

    def test_digest_is_a_stable_sha256(self, density: Density) -> None:
        assert len(density.digest) == 64
        assert density.digest == density.digest
