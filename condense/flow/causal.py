"""Layers of the autoregressive flow.

They work on the grid of 2x2 blocks: x is squeezed to y (N, D, h, w) with D = 4 C.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from condense.flow.layers import log_logistic

PIXELS = 4  # of a block
# |e| seen by the networks: beyond, a value is an outlier whatever its size.
_FEATURE_BOUND = 4.0
# A component narrower than exp(-5) prediction errors would be narrower than an 8-bit level, where there is no detail.
_MIN_LOG_SCALE = -5.0
_BISECTIONS = 40
# Of the least squares, in squares of x: far below the variance 1.3e-6 of dequantisation noise.
_RIDGE = 1e-7
_MIN_ERROR = 1e-3  # the deviation of dequantisation noise


class CausalConv2d(nn.Module):
    """A convolution that sees `rows` rows of blocks above, `side` to each side of them, and what is left in its own.

    Args:
        own: whether it sees the block that it is computed for.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, rows: int, side: int, *, own: bool) -> None:
        super().__init__()
        self.rows, self.side = rows, side
        mask = causal_mask(rows, side, own=own)
        # Not read from files: no weights can make a flow look ahead.
        self.register_buffer("mask", mask, persistent=False)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *mask.shape) / math.sqrt(inputs * float(mask.sum())))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def pad(self, x: Tensor) -> Tensor:
        """x (N, C, h, w) with what lies outside the image as zeros."""
        return F.pad(x, (self.side, self.side, self.rows, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h, w)."""
        return self.valid(self.pad(x))

    def valid(self, padded: Tensor) -> Tensor:
        """Returns the same of a padded input, or of the window of one block."""
        return F.conv2d(padded, self.weight * self.mask, self.bias)


class Block(nn.Module):
    """Residual: unit mean square, activation, causal convolution, activation, 1x1 convolution that starts at zero."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.causal = CausalConv2d(hidden, hidden, 1, 1, own=True)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(cast(Tensor, self.mix.bias))

    def forward(self, h: Tensor) -> Tensor:
        """(N, hidden, h, w) to the same shape."""
        added: Tensor = self.mix(activate(self.causal(activate(normalise(h)))))
        return h + added


class LinearPrediction(nn.Module):
    """e = (y - prediction) / sigma of blocks y (N, D, h, w), D = 4 C: least squares on two rows of blocks above, three
    blocks to the left, and the values before in the block."""

    mask: Tensor
    past: Tensor
    inside: Tensor
    bias: Tensor
    log_scale: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("mask", causal_mask(2, 3, own=False), persistent=False)
        self.register_buffer("past", torch.zeros(dims, dims + 1, 3, 7))  # the last input is one inside the image
        self.register_buffer("inside", torch.zeros(dims, dims))
        self.register_buffer("bias", torch.zeros(dims))
        self.register_buffer("log_scale", torch.zeros(dims))

    @torch.no_grad()
    def initialise_(self, y: Tensor) -> None:
        """Fits all of it to blocks y (N, D, h, w)."""
        dims, taps = y.shape[1], self.mask.numel()
        windows = F.unfold(with_ones(y), (3, 7)).unflatten(1, (dims + 1, taps)).double()
        seen = self.mask.flatten().bool()
        before = windows[:, :, seen].flatten(1, 2).movedim(1, -1).flatten(0, 1)
        values = y.double().flatten(2).movedim(1, -1).flatten(0, 1)
        known = torch.cat([before, values, torch.ones_like(values[:, :1])], 1)
        products = known.T @ known / len(known)
        for d in range(dims):
            used = torch.tensor([*range(before.shape[1] + d), len(products) - 1])
            ridge = _RIDGE * torch.eye(len(used), dtype=torch.float64)
            solved = torch.linalg.solve(products[used][:, used] + ridge, products[used, before.shape[1] + d])
            error = (values[:, d] - known[:, used] @ solved).square().mean().sqrt()
            past = torch.zeros(dims + 1, taps, dtype=torch.float64)
            past[:, seen] = solved[: before.shape[1]].view(dims + 1, -1)
            self.past[d] = past.view_as(self.past[d])
            self.inside[d, :d] = solved[before.shape[1] : -1]
            self.bias[d] = solved[-1]
            self.log_scale[d] = error.clamp_min(_MIN_ERROR).log()

    def from_past(self, y: Tensor) -> Tensor:
        """Returns what the blocks before predict, (N, D, h, w)."""
        return self.from_window(with_ones(y))

    def from_window(self, padded: Tensor) -> Tensor:
        """Returns the same of blocks that are padded and have their ones, (N, D + 1, h + 2, w + 6)."""
        return F.conv2d(padded, self.past * self.mask, self.bias)

    @property
    def scale(self) -> Tensor:
        """sigma, (D, 1, 1)."""
        return self.log_scale.exp()[:, None, None]

    def errors(self, y: Tensor, from_past: Tensor) -> Tensor:
        """e, (N, D, h, w)."""
        inside = F.conv2d(y, self.inside.tril(-1)[:, :, None, None])
        return (y - from_past - inside) / self.scale


class Mixtures(NamedTuple):
    """Of every pixel: log weights (N, 4, 1, K, h, w), its channels together; means and log scales (N, 4, C, K, h, w).

    Means are those given the channels before.
    """

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def log_density(self, e: Tensor) -> Tensor:
        """Of the pixels, (N, 4, h, w), at errors e (N, 4, C, h, w)."""
        return (self.log_weights[:, :, 0] + self._by_channel(e).sum(2)).logsumexp(2)

    def given(self, e: Tensor) -> Mixtures:
        """Returns the same for each channel alone, given those before it: these make some components likelier."""
        before = self._by_channel(e)[:, :, :-1].cumsum(2)
        joint = torch.cat([self.log_weights, self.log_weights + before], 2)
        return Mixtures(joint.log_softmax(3), self.means, self.log_scales)

    def logits(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """z = logit F(e) and ln dz/de of each channel, (N, 4, C, h, w)."""
        t = self._standardised(e)
        log_cdf = (self.log_weights + F.logsigmoid(t)).logsumexp(3)
        log_rest = (self.log_weights + F.logsigmoid(-t)).logsumexp(3)
        return log_cdf - log_rest, (self.log_weights + self._by_channel(e)).logsumexp(3) - log_cdf - log_rest

    def inverse(self, z: Tensor) -> Tensor:
        """e of z, (N, 4, C, h, w): it lies between the smallest and the largest of the components' own quantiles."""
        quantiles = self.means + z[:, :, :, None] * self.log_scales.exp()
        low, high = quantiles.amin(3), quantiles.amax(3)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = self.logits(middle)[0] > z
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def _standardised(self, e: Tensor) -> Tensor:
        return (e[:, :, :, None] - self.means) * (-self.log_scales).exp()

    def _by_channel(self, e: Tensor) -> Tensor:
        """ln of each component's logistic density."""
        return log_logistic(self._standardised(e)) - self.log_scales


class Head(nn.Module):
    """The mixtures of a block's four pixels from the network's view of the blocks before and the pixels before."""

    mask: Tensor

    def __init__(self, channels: int, hidden: int, components: int) -> None:
        super().__init__()
        self.channels, self.components = channels, components
        width = max(8, 2 * hidden // 3)
        dims = PIXELS * channels
        of_pixel = torch.arange(PIXELS).repeat_interleave(channels).repeat(2)
        mask = (of_pixel[None] < torch.arange(PIXELS).repeat_interleave(width)[:, None]).float()
        self.register_buffer("mask", mask[:, :, None, None], persistent=False)
        self.view = nn.Conv2d(hidden, PIXELS * width, 1)
        self.inside = nn.Parameter(torch.randn(PIXELS * width, 2 * dims, 1, 1) / math.sqrt(2 * dims))
        self.mix = nn.Conv2d(PIXELS * width, PIXELS * width, 1, groups=PIXELS)
        self.sizes = (1, channels, channels, channels * (channels - 1) // 2)  # weights, means, scales, slopes
        self.out = nn.Conv2d(PIXELS * width, PIXELS * sum(self.sizes) * components, 1, groups=PIXELS)
        nn.init.normal_(self.out.weight, std=0.01)
        with torch.no_grad():
            weights, means, scales, slopes = (
                cast(Tensor, self.out.bias).view(PIXELS, -1, components).split(self.sizes, dim=1)
            )
            spread = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
            for part, start in ((weights, 0.0), (means, spread), (scales, -1.0), (slopes, 0.0)):
                part.copy_(torch.as_tensor(start).expand_as(part))

    def forward(self, h: Tensor, y: Tensor, e: Tensor) -> Mixtures:
        """h (N, hidden, h, w); blocks y and errors e (N, D, h, w), of which a pixel sees those of the pixels before."""
        known = torch.cat([2 * y, bounded(e)], 1)
        inner = activate(self.view(h) + F.conv2d(known, self.inside * self.mask))
        raw = self.out(activate(inner + self.mix(inner))).to(e.dtype)
        raw = raw.unflatten(1, (PIXELS, sum(self.sizes), self.components))
        log_weights, means, log_scales, slopes = raw.split(self.sizes, dim=2)
        errors = e.unflatten(1, (PIXELS, self.channels))[:, :, :, None]
        moved, number = [], 0
        for channel in range(self.channels):
            mean = means[:, :, channel]
            for before in range(channel):
                mean = mean + 2 * torch.tanh(slopes[:, :, number]) * errors[:, :, before]
                number += 1
            moved.append(mean)
        return Mixtures(log_weights.log_softmax(3), torch.stack(moved, 2), log_scales.clamp_min(_MIN_LOG_SCALE))


def causal_mask(rows: int, side: int, *, own: bool) -> Tensor:
    """(rows + 1, 2 side + 1): ones at the blocks before the one in the middle of the last row, and at it if `own`."""
    mask = torch.ones(rows + 1, 2 * side + 1)
    mask[-1, side + own :] = 0
    return mask


def activate(h: Tensor) -> Tensor:
    """Leaky: under plain ReLU most units were dead after 4,000 steps."""
    return F.leaky_relu(h, 0.1)


def normalise(h: Tensor) -> Tensor:
    """Unit mean square over channels, at each block alone."""
    return h * (h.square().mean(1, keepdim=True) + 1e-6).rsqrt()


def bounded(e: Tensor) -> Tensor:
    """Errors as the networks see them, within +- _FEATURE_BOUND."""
    return _FEATURE_BOUND * torch.tanh(e / _FEATURE_BOUND)


def seen_by_network(y: Tensor, e: Tensor) -> Tensor:
    """Returns the network's view of blocks y and their errors e; the last channel is one inside the image."""
    return torch.cat([2 * y, 0.5 * bounded(e), torch.ones_like(y[:, :1])], 1)


def with_ones(y: Tensor) -> Tensor:
    """Blocks padded by two rows above and three columns to each side; the last channel is one inside the image."""
    return F.pad(torch.cat([y, torch.ones_like(y[:, :1])], 1), (3, 3, 2, 0))
