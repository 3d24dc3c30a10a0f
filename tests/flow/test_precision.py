from __future__ import annotations

from pathlib import Path

import pytest
import torch

from condense.errors import FlowError
from condense.flow.bits import Density, bits_per_dim, measure
from condense.flow.precision import BFLOAT16_TOLERANCE, InBfloat16, at_precision, probe_images
from condense.flow.store import load_flow, save_flow, shipped_flows
from condense.pixels import to_float
from condense.seeding import generator
from condense.synthetic.dataset import read_dataset
from tests.builders.flows import DESCRIPTIONS, tiny_flow
from tests.conftest import QUICKSTART, TINY, Command
from tests.flow.contract import DensityContract

SHAPE = (1, 16, 16)


class Steep:
    """A matrix product so steep that rounding its factors to eight bits moves the density by bits."""

    shape = SHAPE
    digest = "5" * 64

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.linspace(-300, 307, 256)
        return (x.flatten(1) @ weights[:, None])[:, 0]


class TestBfloat16IsADensity(DensityContract):
    @pytest.fixture(scope="class")
    def density(self) -> Density:
        return InBfloat16(tiny_flow(DESCRIPTIONS["rgb"]).float().freeze_())


def test_a_density_that_rounding_moves_is_refused() -> None:
    with pytest.raises(FlowError, match=r"(?s)555555555555 in bfloat16 is off by .* bits_precision=float32"):
        at_precision(Steep(), "bfloat16")


def test_a_density_that_is_not_finite_in_bfloat16_is_refused() -> None:
    class Overflows(Steep):
        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            product = x.flatten(1) @ torch.ones(256, 1)
            return torch.where(torch.tensor(product.dtype == torch.bfloat16), torch.nan, 0.0) * product[:, 0]

    with pytest.raises(FlowError, match="off by nan"):
        at_precision(Overflows(), "bfloat16")


def test_float32_is_the_density_itself() -> None:
    steep = Steep()
    assert at_precision(steep, "float32") is steep


def test_what_is_accepted_is_as_close_on_other_images() -> None:
    flow = tiny_flow(DESCRIPTIONS["rgb"]).float().freeze_()
    low = at_precision(flow, "bfloat16")
    assert low.digest == flow.digest
    images = torch.rand((8, *flow.shape), generator=generator(3, "images"))
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bits_per_dim(low, x).sum(), x)
    y = images.clone().requires_grad_()
    (exact,) = torch.autograd.grad(bits_per_dim(flow, y).sum(), y)
    difference = (bits_per_dim(low, images) - bits_per_dim(flow, images)).abs().max()
    assert 0 < difference <= BFLOAT16_TOLERANCE
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("name", shipped_flows())
def test_a_shipped_flow_is_refused_exactly_where_its_probe_is_off(name: str) -> None:
    flow = load_flow(name)
    images = to_float(probe_images(flow.shape))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = bits_per_dim(flow, images, torch.rand(images.shape, generator=generator(0, "precision-probe")))
    with torch.no_grad():
        exact = bits_per_dim(flow, images, torch.rand(images.shape, generator=generator(0, "precision-probe")))
    if (low - exact).abs().max() <= BFLOAT16_TOLERANCE:
        assert at_precision(flow, "bfloat16").shape == flow.shape
    else:
        with pytest.raises(FlowError, match="bfloat16"):
            at_precision(flow, "bfloat16")


def test_a_run_in_bfloat16_reports_the_bits_of_float32(condense: Command, tmp_path: Path) -> None:
    flow = tiny_flow(DESCRIPTIONS["grey"]).float()
    save_flow(flow, tmp_path / "tiny.safetensors", {})
    settings = ("flow=tiny.safetensors", "bits_weight=1", "bits_precision=bfloat16")
    ended = condense("run", QUICKSTART, *TINY, *settings)
    assert ended.code == 0, ended.err
    written = read_dataset(tmp_path / ended.dataset)
    assert written.bits_per_dim is not None
    measured = measure(load_flow(tmp_path / "tiny.safetensors"), written.images, seed=written.provenance["seed"])
    torch.testing.assert_close(written.bits_per_dim, measured.bits_per_dim, rtol=0, atol=1e-9)
