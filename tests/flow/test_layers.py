from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from condense.flow.layers import AffineCoupling, ChannelMixing, LogisticMixture, squeeze, unsqueeze
from condense.seeding import generator


def randomised(module: nn.Module) -> nn.Module:
    draws = generator(0, "weights")
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return module


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "images"), dtype=torch.float64)


def mixing() -> nn.Module:
    layer = ChannelMixing(4).double()
    layer.initialise_(images(8, 4, 2, 2), generator(0, "rotation"), rotate=True)
    return randomised(layer)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "mixing": mixing,
    "folded mixing": lambda: _folded(mixing()),
    "coupling": lambda: randomised(AffineCoupling(4, 5)),
}


def _folded(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, ChannelMixing)
    layer.fold_()
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_log_determinant_is_that_of_the_jacobian(name: str) -> None:
    layer = LAYERS[name]()
    x = images(1, 4, 2, 2)
    jacobian = torch.autograd.functional.jacobian(lambda y: layer(y)[0].flatten(), x).reshape(16, 16)
    z, by_position = layer(x)
    log_abs_det = by_position.expand_as(z[:, 0]).sum()
    torch.testing.assert_close(log_abs_det, torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("name", LAYERS)
def test_inverse_returns_the_input(name: str) -> None:
    layer = LAYERS[name]()
    x = images(3, 4, 2, 2)
    torch.testing.assert_close(layer.inverse(layer(x)[0]), x)


def test_unsqueeze_undoes_squeeze_which_keeps_blocks_together() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    z = squeeze(x)
    assert z.shape == (2, 12, 2, 2)
    assert set(z[0, :, 0, 0].tolist()) == set(x[0, :, :2, :2].flatten().tolist())
    assert torch.equal(unsqueeze(z), x)


@pytest.mark.parametrize("rotate", [False, True])
def test_initialised_mixing_whitens_its_batch(rotate: bool) -> None:
    x = images(64, 4, 2, 2) * torch.tensor([0.1, 1, 10, 3.0])[:, None, None] + 5
    x[:, 1] += x[:, 0]
    layer = ChannelMixing(4).double()
    layer.initialise_(x, generator(0, "rotation"), rotate=rotate)
    rows = layer(x)[0].permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(rows @ rows.T / rows.shape[1], torch.eye(4, dtype=torch.float64))


def test_initialised_mixing_stays_finite_on_a_constant_channel() -> None:
    x = images(8, 4, 2, 2)
    x[:, 2] = 0.25
    layer = ChannelMixing(4).double()
    layer.initialise_(x, generator(0, "rotation"), rotate=True)
    z, log_abs_det = layer(x)
    assert z.isfinite().all()
    assert log_abs_det.isfinite()


def test_mixture_of_one_component_is_the_logistic_density() -> None:
    base = LogisticMixture(2, 0, 4, 1).double()
    z = images(5, 2, 3, 3)
    logistic = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros(1, dtype=torch.float64), 1),
        [
            torch.distributions.SigmoidTransform().inv,
            torch.distributions.AffineTransform(0.0, base.constant[-1].exp().item()),
        ],
    )
    torch.testing.assert_close(base.log_prob(z, None), logistic.log_prob(z).sum(dim=1))


def test_mixture_integrates_to_one_for_any_context() -> None:
    base = randomised(LogisticMixture(1, 2, 4, 3))
    assert isinstance(base, LogisticMixture)
    grid = torch.linspace(-60, 60, 40_001, dtype=torch.float64)[:, None, None, None]
    context = images(1, 2, 1, 1).expand(len(grid), -1, -1, -1)
    density = base.log_prob(grid, context).exp()[:, 0, 0]
    torch.testing.assert_close(torch.trapezoid(density, grid.flatten()), torch.tensor(1.0, dtype=torch.float64))


def test_mixture_samples_have_the_mixtures_mean_and_spread() -> None:
    base = LogisticMixture(1, 0, 4, 3).double()
    drawn = base.sample(torch.empty(20_000, 1, 1, 1, dtype=torch.float64), None, generator(0, "sample"), 1.0)
    spread = base.constant.detach().reshape(3, 3)
    variance = (torch.pi**2 / 3 * (2 * spread[2]).exp()).mean() + spread[1].var(correction=0)
    assert abs(drawn.mean()) < 0.03
    torch.testing.assert_close(drawn.var(), variance, rtol=0.05, atol=0)
