"""The invertible layers of the flow, and its base density.

Every layer maps data to latent, x (N, C, H, W) to z, with the log-determinant of its Jacobian. Images are kept
channels-last in memory, where a 1x1 convolution is one matrix product and the CPU's 3x3 convolutions are fastest.

- squeeze: space to channels (Dinh et al. 2017, section 3.6), volume preserving.
- ChannelMixing: ActNorm and the invertible 1x1 convolution, z = P L (U + diag(s)) ((x - m) * a) (Kingma, Dhariwal
  2018, sections 3.1 and 3.2), computed as the one affine map over channels that their product is.
- AffineCoupling: z_b = (x_b + t(x_a)) * exp(s(x_a)), z_a = x_a (Dinh et al. 2017, equation 4), with bounded s.
- LogisticMixture: the base density of what is factored out, given what continues (Ho et al. 2019, equation 4, as a
  density instead of a coupling).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# A direction of the data with less variance than this is treated as having this much: the variance of uniform
# dequantisation noise is 1 / (12 * 256^2) = 1.3e-6, so no 8-bit image set that the flow sees has less.
_MIN_VARIANCE = 1e-6
# |log s| <= 2 in one coupling: wide enough to resolve one 8-bit level in a few steps, narrow enough that steps of
# Adam at 1e-2 do not overflow.
_LOG_SCALE_BOUND = 2.0
# A component narrower than exp(-7) latent units would make constant images' densities overflow under training.
_MIN_COMPONENT_LOG_SCALE = -7.0


def squeeze(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 4C, H/2, W/2): each 2x2 block of pixels becomes channels; its inverse is `unsqueeze`."""
    n, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)


def unsqueeze(z: Tensor) -> Tensor:
    """(N, 4C, H, W) to (N, C, 2H, 2W), the inverse of `squeeze`."""
    n, c, h, w = z.shape
    blocks = z.permute(0, 2, 3, 1).reshape(n, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)


def log_logistic(t: Tensor) -> Tensor:
    """ln sigmoid'(t) = -t - 2 softplus(-t), written in |t|, which it depends on alone, so that exp never overflows."""
    t = t.abs()
    return -t - 2 * torch.log1p((-t).exp())


class ChannelMixing(nn.Module):
    """ActNorm followed by an invertible 1x1 convolution: z = W (x - m) * a with W = P L (U + diag(s)).

    `fold_` stores the product's weight, bias and log-determinant, for a flow that is no longer trained.
    """

    permutation: Tensor
    signs: Tensor
    folded_weight: Tensor | None
    folded_bias: Tensor | None
    folded_log_abs_det: Tensor | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))
        self.register_buffer("permutation", torch.eye(channels))
        self.register_buffer("signs", torch.ones(channels))
        for name in ("folded_weight", "folded_bias", "folded_log_abs_det"):
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def initialise_(self, x: Tensor, generator: torch.Generator, *, rotate: bool) -> None:
        """Sets the map so that the channels of z = forward(x) are uncorrelated with mean 0 and variance 1 (PCA).

        Args:
            x: (N, C, H, W), the first batch as it arrives at this layer.
            generator: draws the rotation.
            rotate: whether a random rotation follows; without it the channels of z are the principal directions,
                in descending order of variance.
        """
        rows = x.permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = rows.mean(0)
        scale = rows.var(0, correction=0).clamp_min(_MIN_VARIANCE).rsqrt()
        normal = (rows - mean) * scale
        variances, directions = torch.linalg.eigh(normal.T @ normal / len(normal))
        variances, directions = variances.flip(0), directions.flip(1)
        # The floor above is in x's units, here in units of the normalised channels.
        weight = directions.T / variances.clamp_min(_MIN_VARIANCE).sqrt()[:, None]
        if rotate:
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight = torch.linalg.qr(noise).Q @ weight
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        for parameter, value in (
            (self.mean, mean),
            (self.log_scale, scale.log()),
            (self.lower, lower),
            (self.upper, upper),
            (self.log_diagonal, diagonal.abs().log()),
            (self.permutation, permutation),
            (self.signs, diagonal.sign()),
        ):
            parameter.copy_(value)

    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the map as z = weight x + bias: weight (C, C), bias (C,), and log |det| of the weight (a scalar)."""
        if self.folded_weight is not None:
            assert self.folded_bias is not None
            assert self.folded_log_abs_det is not None
            return self.folded_weight, self.folded_bias, self.folded_log_abs_det
        identity = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        lower = self.lower.tril(-1) + identity
        upper = self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())
        weight = self.permutation @ lower @ upper * self.log_scale.exp()
        return weight, -(weight @ self.mean), self.log_diagonal.sum() + self.log_scale.sum()

    @torch.no_grad()
    def fold_(self) -> None:
        """Keeps `affine` as constants; later changes of the parameters have no effect."""
        self.folded_weight, self.folded_bias, self.folded_log_abs_det = self.affine()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to z of the same shape and a position's log-determinant, a scalar: the same at every one."""
        # Under autocast too: rounding here would be a map that is not the one whose determinant is counted.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, log_abs_det = self.affine()
            z = F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        return z, log_abs_det

    def inverse(self, z: Tensor) -> Tensor:
        """z (N, C, H, W) back to x."""
        weight, bias, _ = self.affine()
        inverted = torch.linalg.inv(weight.double()).to(weight.dtype)
        return F.linear(z.permute(0, 2, 3, 1) - bias, inverted).permute(0, 3, 1, 2)


def coupling_network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """3x3, 1x1, 1x1 convolutions with ReLU between; the last starts at zero, so that a coupling starts as identity.

    Glow's last convolution is 3x3: at equal steps that was no better, and a step took 1.4 times as long (CIFAR-10 test,
    50 CPU-seconds each: 4.02 bits per dim with 3x3, 3.97 with 1x1).
    """
    last = nn.Conv2d(hidden, outputs, 1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(inplace=True),
        last,
    )


class AffineCoupling(nn.Module):
    """z = [x_a, (x_b + t) exp(s)] with s = B tanh(raw / B), B = 2, and (t, raw) a network's view of x_a."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.network = coupling_network(channels // 2, hidden, channels)

    def _shift_and_log_scale(self, x_a: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(x_a).to(x_a.dtype).chunk(2, dim=1)
        return shift, _LOG_SCALE_BOUND * torch.tanh(raw / _LOG_SCALE_BOUND)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to z of the same shape and each position's log-determinant (N, H, W)."""
        x_a, x_b = x.chunk(2, dim=1)
        shift, log_scale = self._shift_and_log_scale(x_a)
        return torch.cat([x_a, (x_b + shift) * log_scale.exp()], dim=1), log_scale.sum(dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """z (N, C, H, W) back to x."""
        z_a, z_b = z.chunk(2, dim=1)
        shift, log_scale = self._shift_and_log_scale(z_a)
        return torch.cat([z_a, z_b * (-log_scale).exp() - shift], dim=1)


class LogisticMixture(nn.Module):
    """The density of latents z (N, C, H, W) given a context: each z is an independent mixture of logistics.

        ln p(z) = sum over dimensions of ln sum_k softmax(l)_k sigmoid'((z - m_k) / e^{s_k}) / e^{s_k}

    with (l, m, s) from a network of the context, or learned per channel where there is none (`context` = 0).
    """

    def __init__(self, channels: int, context: int, hidden: int, components: int) -> None:
        super().__init__()
        self.components = components
        # At the start: equal weights, means spread over the data's unit variance, logistic variance pi^2/3 e^{2s}.
        means = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
        log_scale = -math.log(math.pi / math.sqrt(3)) - (0.5 if components > 1 else 0.0)
        start = torch.stack([torch.zeros(components), means, torch.full((components,), log_scale)])
        self.constant = nn.Parameter(start.flatten().repeat_interleave(channels)[:, None, None].clone())
        self.network = coupling_network(context, hidden, 3 * components * channels) if context else None

    def _mixture(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """log weights, means and log scales, each broadcast to (N, components, C, H, W)."""
        raw = self.constant[None]
        if self.network is not None:
            assert context is not None
            raw = raw + self.network(context).to(context.dtype)
        raw = raw.reshape(len(raw), 3, self.components, z.shape[1], *raw.shape[2:])
        return raw[:, 0].log_softmax(dim=1), raw[:, 1], raw[:, 2].clamp_min(_MIN_COMPONENT_LOG_SCALE)

    def log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        """ln p(z | context) at each position in nats, (N, H, W), for z (N, C, H, W), context (N, C', H, W) or None."""
        log_weights, means, log_scales = self._mixture(z, context)
        t = (z[:, None] - means) * (-log_scales).exp()
        return (log_weights + log_logistic(t) - log_scales).logsumexp(dim=1).sum(dim=1)

    def sample(self, like: Tensor, context: Tensor | None, generator: torch.Generator, temperature: float) -> Tensor:
        """Returns one draw of the shape of `like` (N, C, H, W); `temperature` scales every component's width."""
        log_weights, means, log_scales = (
            part.expand(len(like), self.components, *like.shape[1:]) for part in self._mixture(like, context)
        )
        uniform = torch.rand(log_weights.shape, generator=generator, dtype=like.dtype, device=like.device)
        chosen = (log_weights - (-uniform.clamp_min(1e-12).log()).log()).argmax(dim=1, keepdim=True)  # Gumbel maximum
        u = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device).clamp(1e-5, 1 - 1e-5)
        mean, log_scale = means.gather(1, chosen)[:, 0], log_scales.gather(1, chosen)[:, 0]
        return mean + temperature * log_scale.exp() * torch.logit(u)
