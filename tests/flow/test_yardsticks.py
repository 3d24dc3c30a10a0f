"""The flows that ship in the package."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from condense.flow.architecture import Flow
from condense.flow.bits import Density, bits_per_dim, measure
from condense.flow.store import flow_for, load_card, load_flow, shipped_flows
from condense.pixels import dequantise, round_straight_through, to_uint8
from condense.seeding import generator
from tests.flow.contract import DensityContract


class TestRgb32IsADensity(DensityContract):
    @pytest.fixture(scope="class")
    def density(self) -> Density:
        return load_flow("rgb32")


class TestGrey32IsADensity(DensityContract):
    @pytest.fixture(scope="class")
    def density(self) -> Density:
        return load_flow("grey32")


@pytest.fixture(params=["grey32", "rgb32"], scope="module")
def flow(request: pytest.FixtureRequest) -> Flow:
    return load_flow(request.param)


def smooth(flow: Flow) -> torch.Tensor:
    """Four pictures of a soft blob each: (4, C, H, W) in [0, 1]."""
    centres = torch.rand((4, 2, 1, 1, 1), generator=generator(0, "centres")) * 16 + 8
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return (-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 60).exp().expand(4, *flow.shape)


def test_both_ship_and_are_found_by_shape() -> None:
    assert shipped_flows() == ("grey32", "rgb32")
    assert flow_for((1, 32, 32)) == "grey32"
    assert flow_for((3, 32, 32)) == "rgb32"


def cpu_seconds(card: dict[str, Any]) -> float:
    """Of all fits behind a flow, each going on from the one before."""
    return float(card["cpu_seconds"]) + (cpu_seconds(card["start"]) if card["start"] else 0.0)


def test_cards_state_recipe_cost_sources_and_held_out_bits() -> None:
    rgb, grey = load_card("rgb32"), load_card("grey32")
    assert rgb["held_out"]["cifar10"]["bits_per_dim"] < 3.50
    assert cpu_seconds(rgb) < 7200
    bounds = {"mnist": 1.44, "fashion_mnist": 2.80, "cifar10": 5.07}
    assert set(grey["held_out"]) == set(bounds)
    assert all(grey["held_out"][name]["bits_per_dim"] < bound for name, bound in bounds.items())
    assert cpu_seconds(grey) < 1200
    for card in (rgb, grey):
        assert card["recipe"]["steps"] > 0
        assert set(card["sources"]) == set(card["held_out"])


def test_constant_costs_less_than_smooth_which_costs_less_than_noise(flow: Flow) -> None:
    constant = torch.full((4, *flow.shape), 90, dtype=torch.uint8)
    noise = torch.randint(256, (4, *flow.shape), generator=generator(0, "noise"), dtype=torch.uint8)
    costs = [measure(flow, images, seed=0).mean for images in (constant, to_uint8(smooth(flow)), noise)]
    assert 0 < costs[0] < costs[1] < costs[2] < 10


def test_a_pattern_that_repeats_costs_no_more_than_twice_a_uniform_density(flow: Flow) -> None:
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    masks = [(x // p + y // q) % 2 for p, q in ((1, 1), (2, 2), (3, 3), (1, 32), (32, 1), (2, 32), (32, 4))]
    patterns = torch.stack([255 * mask for mask in masks]).to(torch.uint8)[:, None].expand(-1, *flow.shape)
    report = measure(flow, patterns.contiguous(), seed=0)
    assert (report.bits_per_dim < 16).all()


def test_latents_return_the_image(flow: Flow) -> None:
    x = dequantise(smooth(flow))
    torch.testing.assert_close(flow.reconstruct(x), x, atol=1e-3, rtol=0)


def test_float32_bits_are_those_of_float64(flow: Flow) -> None:
    images = smooth(flow)
    exact = load_flow(flow_for(flow.shape)).double()
    torch.testing.assert_close(
        bits_per_dim(flow, images).double(), bits_per_dim(exact, images.double()), atol=1e-3, rtol=0
    )


def test_an_optimiser_with_fresh_noise_cannot_push_bits_below_zero(flow: Flow) -> None:
    rough = torch.randn((4, *flow.shape), generator=generator(0, "rough"))
    alpha = (torch.logit(smooth(flow).clamp(0.02, 0.98)) + 0.3 * rough).requires_grad_()
    optimiser = torch.optim.Adam([alpha], lr=0.1, betas=(0.5, 0.99))
    start = measure(flow, to_uint8(alpha.sigmoid()), seed=1).mean
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 60)
        images = round_straight_through(alpha.sigmoid())
        optimiser.zero_grad()
        bits_per_dim(flow, images, generator(0, "dequantisation", step=step)).mean().backward()
        optimiser.step()
    report = measure(flow, to_uint8(alpha.sigmoid()), seed=1, draws=4)
    assert report.mean < start
    assert (report.bits_per_dim > 0).all()
