from __future__ import annotations

import pytest
import torch

from condense.errors import FlowError
from condense.flow.bits import UniformDensity, measure
from condense.flow.bits_map import MappedDensity, bits_map
from condense.flow.store import load_flow, shipped_flows
from condense.pixels import dequantise
from condense.seeding import generator
from tests.builders.flows import DESCRIPTIONS, pictures, tiny_flow
from tests.flow.contract import edge_images


@pytest.fixture(params=shipped_flows(), scope="module")
def shipped(request: pytest.FixtureRequest) -> MappedDensity:
    flow = load_flow(request.param)
    assert isinstance(flow, MappedDensity)
    return flow


def soft_and_noisy(shape: tuple[int, int, int]) -> torch.Tensor:
    """One uint8 image (1, C, H, W): a soft slope on the left, uniform noise on the right."""
    width = shape[2]
    slope = torch.linspace(60, 120, width).expand(shape).to(torch.uint8)
    noise = torch.randint(256, shape, generator=generator(0, "noise"), dtype=torch.uint8)
    return torch.where(torch.arange(width) < width // 2, slope, noise)[None]


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_nats_of_the_pixels_add_up_to_the_log_density(kind: str) -> None:
    flow = tiny_flow(DESCRIPTIONS[kind])
    x = pictures(flow)
    torch.testing.assert_close(flow.log_prob_map(x).sum((1, 2)), flow.log_prob(x))


def test_bits_of_the_pixels_add_up_to_those_of_the_image(shipped: MappedDensity) -> None:
    images = torch.cat([edge_images(shipped.shape)[:5], soft_and_noisy(shipped.shape)])
    report = measure(shipped, images, seed=3, draws=2)
    found = bits_map(shipped, images, seed=3, draws=2)
    assert found.shape == (6, 32, 32)
    torch.testing.assert_close(found.sum((1, 2)), report.bits, rtol=1e-5, atol=0.05)


def test_chosen_images_have_the_map_that_they_have_among_all(shipped: MappedDensity) -> None:
    images = torch.cat([edge_images(shipped.shape)[:5], soft_and_noisy(shipped.shape)])
    rows = torch.tensor([5, 1])
    whole = bits_map(shipped, images, seed=3)
    torch.testing.assert_close(bits_map(shipped, images, rows, seed=3), whole[rows], rtol=1e-4, atol=1e-3)


def test_noise_has_the_bits_and_a_slope_has_few(shipped: MappedDensity) -> None:
    found = bits_map(shipped, soft_and_noisy(shipped.shape), seed=0)[0] / shipped.shape[0]
    left, right = found[:, :12].mean(), found[:, 20:].mean()  # the patches at the border belong to both
    assert left < 4
    assert right > 7


def test_every_pixel_of_a_uniform_density_costs_eight_bits_a_channel() -> None:
    images = edge_images((3, 16, 16))
    assert torch.equal(bits_map(UniformDensity((3, 16, 16)), images, seed=0), torch.full((6, 16, 16), 24.0).double())


def test_a_density_without_a_map_is_refused() -> None:
    class Plain:
        shape = (1, 16, 16)
        digest = "0" * 64

        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum((1, 2, 3))

    with pytest.raises(FlowError, match="does not say where its bits are"):
        bits_map(Plain(), edge_images((1, 16, 16)), seed=0)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(FlowError, match=r"\(1, 16, 16\), got \(3, 16, 16\)"):
        bits_map(UniformDensity((1, 16, 16)), edge_images((3, 16, 16)), seed=0)


def test_the_map_is_of_the_noise_that_measures(shipped: MappedDensity) -> None:
    image = soft_and_noisy(shipped.shape)
    x = dequantise(image / 255, torch.rand(shipped.shape, generator=generator(7, "dequantisation"))[None])
    expected = 8 * shipped.shape[0] - shipped.log_prob_map(x)[0].double() / torch.log(torch.tensor(2.0)).double()
    torch.testing.assert_close(bits_map(shipped, image, seed=7)[0], expected, rtol=1e-4, atol=1e-3)
