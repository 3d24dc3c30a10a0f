from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from condense.errors import FlowError
from condense.flow.bits import Density, UniformDensity, bits_per_dim, measure
from condense.pixels import to_float
from condense.seeding import generator
from tests.builders.flows import DESCRIPTIONS, tiny_flow
from tests.flow.contract import DensityContract, edge_images

SHAPE = (1, 16, 16)


class TestUniformIsADensity(DensityContract):
    @pytest.fixture
    def density(self) -> Density:
        return UniformDensity((3, 16, 16))


class Tent:
    """The density of independent pixels with p(x) = 4 |x| on [-1/2, 1/2)."""

    shape = SHAPE
    digest = "0" * 64

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return (4 * x.abs()).log().sum(dim=(1, 2, 3))


def test_bits_of_uniform_density_are_eight() -> None:
    images = to_float(edge_images(SHAPE))
    assert torch.equal(bits_per_dim(UniformDensity(SHAPE), images), torch.full((6,), 8.0))
    drawn = bits_per_dim(UniformDensity(SHAPE), images, generator(0, "noise"))
    assert torch.equal(drawn, torch.full((6,), 8.0))


def test_bits_at_the_half_bin_are_the_closed_form() -> None:
    white = torch.ones(1, *SHAPE, dtype=torch.float64)
    x = 255.5 / 256 - 0.5
    assert bits_per_dim(Tent(), white).item() == pytest.approx(8 - math.log2(4 * x))


def test_mean_bits_over_noise_are_the_closed_form() -> None:
    white = torch.full((64, *SHAPE), 255, dtype=torch.uint8)
    # E_u[log2 4|x|] over the last bin [0.5 - 1/256, 0.5], by the midpoint rule.
    x = 0.5 - (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000 / 256
    expected = 8 - (4 * x).log2().mean().item()
    assert measure(Tent(), white, seed=0).mean == pytest.approx(expected, abs=1e-5)


def test_bits_with_noise_stay_at_or_above_zero_where_the_middle_of_a_bin_is_priced_too_low() -> None:
    class Certain:
        """Grey level 128 is all but certain, and half of its bin's mass is a spike in the bin's middle."""

        shape, digest, width = SHAPE, "1" * 64, 1 / 4096

        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            inside = ((x + 0.5) * 256).floor() == 128
            from_middle = ((x + 0.5) * 256 % 1 - 0.5).abs() / 256
            triangle = (1 - from_middle / self.width).clamp_min(0) / self.width
            return torch.where(inside, 0.5 * 256 + 0.5 * triangle, 1e-6).log().sum(dim=(1, 2, 3))

    grey = torch.full((4, *SHAPE), 128, dtype=torch.uint8)
    assert bits_per_dim(Certain(), to_float(grey)).max() < -2
    report = measure(Certain(), grey, seed=0, draws=50)
    assert report.standard_errors is not None
    assert (report.bits_per_dim > -3 * report.standard_errors).all()


def test_gradient_reaches_every_pixel() -> None:
    images = to_float(edge_images(SHAPE)).requires_grad_()
    bits_per_dim(Tent(), images, generator(0, "noise")).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).all()


def test_measure_repeats_and_does_not_depend_on_the_batch_size() -> None:
    flow = tiny_flow(DESCRIPTIONS["grey"]).float().freeze_()
    images = edge_images(SHAPE)
    first = measure(flow, images, seed=3, draws=2)
    assert torch.equal(first.bits_per_dim, measure(flow, images, seed=3, draws=2).bits_per_dim)
    in_pairs = measure(flow, images, seed=3, draws=2, batch_size=2)
    torch.testing.assert_close(in_pairs.bits_per_dim, first.bits_per_dim, rtol=1e-5, atol=1e-5)
    assert not torch.equal(first.bits_per_dim, measure(flow, images, seed=4, draws=2).bits_per_dim)


def test_report_says_bits_of_the_image_and_the_error_of_the_draws() -> None:
    images = edge_images(SHAPE)
    report = measure(Tent(), images, seed=0, draws=8)
    assert report.standard_errors is not None
    assert report.of(torch.tensor([3])).standard_error == pytest.approx(report.standard_errors[3].item())
    torch.testing.assert_close(report.bits, report.bits_per_dim * 256)
    assert report.digest == Tent.digest
    assert report.standard_error is not None
    per_draw = [measure(Tent(), images, seed=seed).mean for seed in range(20)]
    spread = torch.tensor(per_draw).std().item() / math.sqrt(8)
    assert spread / 4 < report.standard_error < spread * 4
    assert measure(Tent(), images, seed=0).standard_error is None


@pytest.mark.parametrize("channels", [1, 3])
def test_png_bytes_are_those_of_an_exact_png(channels: int) -> None:
    images = edge_images((channels, 16, 16))
    report = measure(UniformDensity((channels, 16, 16)), images, seed=0)
    for image, size in zip(images, report.png_bytes.tolist(), strict=True):
        buffer = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
        picture.save(buffer, format="PNG", optimize=True, compress_level=9)
        assert size == len(buffer.getvalue())
    assert report.png_bytes[4] > report.png_bytes[0]


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(FlowError, match=r"shape \(N, 1, 16, 16\), got \(2, 3, 16, 16\)"):
        bits_per_dim(UniformDensity(SHAPE), torch.zeros(2, 3, 16, 16))


def test_measure_refuses_float_images() -> None:
    with pytest.raises(FlowError, match="uint8"):
        measure(UniformDensity(SHAPE), torch.zeros(2, *SHAPE), seed=0)
