"""Every 8-bit image has finite bits and a finite gradient under the shipped flows, and float32 is enough."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from condense.flow.architecture import Flow
from condense.flow.bits import bits_per_dim, measure
from condense.flow.store import load_flow, shipped_flows
from condense.pixels import round_straight_through, to_float, to_uint8
from condense.seeding import generator

# Bits per dim, float32 against float64, where an image costs at most twice what a uniform density asks. Beyond that
# (patterns that no yardstick saw in training) latents may outgrow float32's digits: finite is all that is said.
ROUNDING = 1e-4
ORDINARY = 16.0

FEW = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LEVELS = st.integers(0, 255) | st.sampled_from([0, 1, 127, 254, 255])


@st.composite
def images(draw: st.DrawFn, count: int = 4) -> Tensor:
    """uint8 (count, 3, 32, 32): constants, halves, borders, periodic patterns and blocks, with more or less noise."""
    made = []
    for _ in range(count):
        y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        cut, period = draw(st.integers(0, 32)), draw(st.integers(2, 8))
        mask = {
            "constant": y < 0,
            "left": x < cut,
            "top": y < cut,
            "border": torch.minimum(torch.minimum(x, y), torch.minimum(31 - x, 31 - y)) < cut // 2,
            "dot": (x == cut) & (y == period),
            "rows": y % period == 0,
            "columns": x % period == 0,
            "checkerboard": (x // (period // 2) + y // (period // 2)) % 2 == 0,
            "blocks": torch.tensor(draw(st.lists(st.booleans(), min_size=16, max_size=16)))
            .view(4, 4)
            .repeat_interleave(8, 0)
            .repeat_interleave(8, 1),
        }[
            draw(
                st.sampled_from(
                    ["constant", "left", "top", "border", "dot", "rows", "columns", "checkerboard", "blocks"]
                )
            )
        ]
        one, other = (torch.tensor([draw(LEVELS) for _ in range(3)])[:, None, None] for _ in range(2))
        noise = torch.rand((3, 32, 32), generator=generator(draw(st.integers(0, 2**31)), "image"))
        amount = draw(st.sampled_from([0.0, 0.0, 2.0, 30.0, 255.0]))
        made.append((torch.where(mask, one, other) + amount * (noise - 0.5)).clamp(0, 255).to(torch.uint8))
    return torch.stack(made)


@pytest.fixture(params=shipped_flows(), scope="module")
def flow(request: pytest.FixtureRequest) -> Flow:
    return load_flow(request.param)


@pytest.fixture(scope="module")
def exact(flow: Flow) -> Flow:
    return copy.deepcopy(flow).double()


@FEW
@given(images())
def test_bits_and_gradient_are_finite_and_float32_is_float64_within_the_bound(
    flow: Flow, exact: Flow, drawn: Tensor
) -> None:
    x = to_float(drawn[:, : flow.shape[0]]).requires_grad_()
    noise = torch.rand(x.shape, generator=generator(0, "noise"))
    bits = bits_per_dim(flow, x, noise)
    (gradient,) = torch.autograd.grad(bits.sum(), x)
    assert bits.isfinite().all()
    assert gradient.isfinite().all()
    with torch.no_grad():
        expected = bits_per_dim(exact, x.detach().double(), noise.double())
    ordinary = expected < ORDINARY
    assert ((bits - expected).abs()[ordinary] < ROUNDING).all()
    assert (bits[~ordinary] > ORDINARY - 1).all()


def test_an_optimiser_with_fresh_noise_leaves_expected_bits_at_or_above_zero(flow: Flow) -> None:
    starts = torch.stack([torch.full(flow.shape, level) for level in (0.02, 0.5, 0.98)])
    rough = 0.05 * torch.randn(starts.shape, generator=generator(0, "start"))
    pixels = (starts + rough).clamp(0, 1).requires_grad_()
    before = measure(flow, to_uint8(pixels), seed=1).mean
    optimiser = torch.optim.Adam([pixels], lr=0.02, betas=(0.5, 0.99))
    steps = 60
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        optimiser.zero_grad()
        bits_per_dim(flow, round_straight_through(pixels), generator(0, "dequantisation", step=step)).sum().backward()
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    report = measure(flow, to_uint8(pixels), seed=1, draws=8)  # other noise than any that it was optimised with
    assert report.standard_errors is not None
    assert report.mean < before / 2
    assert (report.bits_per_dim >= -3 * report.standard_errors).all()
