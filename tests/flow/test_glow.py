from __future__ import annotations

import math
import pickle

import pytest
import torch

from condense.errors import ConfigError, FlowError
from condense.flow.architecture import Flow, FlowDescription
from condense.flow.bits import Density
from condense.flow.glow import Glow
from condense.flow.recipe import FlowFitConfig
from condense.flow.registry import ARCHITECTURES, build
from condense.seeding import generator
from condense.settings import validate
from tests.builders.flows import DESCRIPTIONS, pictures, tiny_flow
from tests.flow.contract import DensityContract


class TestFlowIsADensity(DensityContract):
    @pytest.fixture(scope="class", params=["grey", "autoregressive rgb"])
    def density(self, request: pytest.FixtureRequest) -> Density:
        return tiny_flow(DESCRIPTIONS[request.param]).float().freeze_()


@pytest.fixture(params=DESCRIPTIONS)
def flow(request: pytest.FixtureRequest) -> Flow:
    return tiny_flow(DESCRIPTIONS[request.param])


def test_log_determinant_is_that_of_the_jacobian(flow: Flow) -> None:
    x = pictures(flow, 1)
    jacobian = torch.autograd.functional.jacobian(
        lambda y: torch.cat([z.flatten() for z in flow.encode(y)[0]]), x, vectorize=True
    )
    expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    torch.testing.assert_close(flow.encode(x)[1][0], expected)


def test_images_come_back_from_their_latents(flow: Flow) -> None:
    x = pictures(flow)
    torch.testing.assert_close(flow.reconstruct(x), x)


@pytest.mark.parametrize("name", ["grey", "rgb", "one level", "autoregressive grey"])
def test_decode_returns_what_was_encoded(name: str) -> None:
    flow = tiny_flow(DESCRIPTIONS[name])
    x = pictures(flow, 1)
    torch.testing.assert_close(flow.decode(flow.encode(x)[0]), x)


@pytest.mark.parametrize("name", ["autoregressive grey", "autoregressive rgb"])
def test_no_block_sees_a_later_one(name: str) -> None:
    flow = tiny_flow(DESCRIPTIONS[name])
    x = pictures(flow, 1)
    changed = x.clone()
    changed[:, :, 6:8, 8:10] += 0.1  # the block in row 3, column 4 of 8
    (before,), (after,) = flow.terms(x), flow.terms(changed)
    differs = (before != after).flatten()
    assert not differs[: 3 * 8 + 4].any()
    assert differs[3 * 8 + 4 : 3 * 8 + 6].all()
    assert differs[4 * 8 + 3 : 4 * 8 + 6].all()


def test_samples_of_an_autoregressive_flow_follow_its_density() -> None:
    """Standardised by the flow itself, samples are standard logistic: variance pi^2 / 3."""
    flow = tiny_flow(DESCRIPTIONS["autoregressive rgb"])
    (z,), _ = flow.encode(flow.sample(64, generator(3, "sample")))
    z = z.detach()
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.var()) - math.pi**2 / 3) < 0.15


def test_freezing_changes_no_value_and_stops_training(flow: Flow) -> None:
    x = pictures(flow)
    before, digest = flow.log_prob(x), flow.digest
    flow.freeze_()
    torch.testing.assert_close(flow.log_prob(x), before.detach(), rtol=0, atol=1e-5)
    assert flow.digest == digest
    assert not any(parameter.requires_grad for parameter in flow.parameters())


def test_float32_agrees_with_float64(flow: Flow) -> None:
    x = pictures(flow)
    exact = flow.log_prob(x).detach()
    rounded = flow.freeze_().float().log_prob(x.float())
    torch.testing.assert_close(rounded.double() / x[0].numel(), exact / x[0].numel(), rtol=0, atol=1e-5)


def test_samples_have_the_flows_shape_and_follow_the_generator(flow: Flow) -> None:
    drawn = flow.sample(2, generator(0, "sample"))
    assert drawn.shape == (2, *flow.shape)
    assert torch.equal(drawn, flow.sample(2, generator(0, "sample")))


def test_a_frozen_flow_survives_pickle() -> None:
    flow = tiny_flow(DESCRIPTIONS["grey"]).freeze_()
    copied = pickle.loads(pickle.dumps(flow))
    assert copied.digest == flow.digest
    assert torch.equal(copied.log_prob(pictures(flow)), flow.log_prob(pictures(flow)))


def test_digest_depends_on_every_weight() -> None:
    flow = tiny_flow(DESCRIPTIONS["grey"])
    digests = {flow.digest}
    for parameter in list(flow.parameters())[::7]:
        with torch.no_grad():
            parameter.add_(1e-6)
        digests.add(flow.digest)
    assert len(digests) == 1 + len(list(flow.parameters())[::7])


@pytest.mark.parametrize(("side", "channels"), [(16, 1), (32, 3), (64, 1), (128, 3)])
def test_every_stated_size_has_a_density(side: int, channels: int) -> None:
    flow = Glow(FlowDescription(channels=channels, image_size=side, steps=1, hidden=4))  # type: ignore[arg-type]
    flow.initialise_(pictures(flow, 2), generator(0, "rotation"))
    assert flow.log_prob(pictures(flow, 2)).isfinite().all()


@pytest.mark.parametrize("values", [{"image_size": 24}, {"channels": 4}, {"image_size": 16, "levels": 4}])
def test_impossible_architectures_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        validate(FlowDescription, values, where="test")


def test_every_architecture_builds_a_flow_from_its_description() -> None:
    for name, architecture in ARCHITECTURES.items():
        described = validate(FlowDescription, {"architecture": name, "image_size": 16, "hidden": 4}, where="test")
        flow = build(described)
        assert type(flow) is architecture
        assert flow.description.architecture == name


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(FlowError, match="unknown architecture 'pixelcnn'; one of: autoregressive, glow"):
        build(FlowDescription(architecture="pixelcnn"))
    with pytest.raises(ConfigError, match="unknown architecture 'pixelcnn'; one of: autoregressive, glow"):
        validate(FlowFitConfig, {"source": "digits", "architecture": {"architecture": "pixelcnn"}}, where="test")
