"""The published Glow in plain PyTorch, to measure beside: Kingma, Dhariwal 2018, sections 3 and 4; K and width free.

Three levels of ActNorm, invertible 1x1 convolution by its LU decomposition, and affine coupling with a network of 3x3,
1x1 and 3x3 convolutions, ActNorm after the first two; half of the channels factored out under a Gaussian whose mean and
deviation a convolution of what continues gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class ActNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias) * self.log_scale.exp()


class ZeroConvolution(nn.Conv2d):
    """3x3, zero at the start, with a learned scale of its output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        nn.init.zeros_(self.weight)
        self.log_scale = nn.Parameter(torch.zeros(1, outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 * self.log_scale).exp()


class Step(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.normalise = ActNorm(channels)
        permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels)).Q)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1, bias=False),
            ActNorm(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1, bias=False),
            ActNorm(hidden),
            nn.ReLU(),
            ZeroConvolution(hidden, channels),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.shape[2] * x.shape[3]
        lower = self.lower.tril(-1) + torch.eye(len(self.lower))
        weight = self.permutation @ lower @ (self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp()))
        x = F.conv2d(self.normalise(x), weight[:, :, None, None])
        log_det = pixels * (self.normalise.log_scale.sum() + self.log_diagonal.sum())
        a, b = x.chunk(2, 1)
        shift, raw = self.network(a).chunk(2, 1)
        scale = torch.sigmoid(raw + 2)
        return torch.cat([a, (b + shift) * scale], 1), log_det + scale.log().sum((1, 2, 3))


class Glow(nn.Module):
    """ln p(x) (N,) of x (N, C, H, W) in [-1/2, 1/2)."""

    def __init__(self, shape: tuple[int, int, int], *, steps: int, hidden: int, levels: int = 3) -> None:
        super().__init__()
        channels = shape[0]
        self.levels, self.priors = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            channels *= 4
            self.levels.append(nn.ModuleList(Step(channels, hidden) for _ in range(steps)))
            channels //= 2
            self.priors.append(ZeroConvolution(channels, 2 * channels))
            self.last = 2 * channels if level == levels - 1 else 0
        self.prior = nn.Parameter(torch.zeros(1, 2 * self.last, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for number, (steps, prior) in enumerate(zip(self.levels, self.priors, strict=True)):
            x = F.pixel_unshuffle(x, 2)
            for step in steps:
                x, log_det = step(x)
                total = total + log_det
            if number < len(self.levels) - 1:
                x, z = x.chunk(2, 1)
                total = total + gaussian(z, prior(x))
        return total + gaussian(x, self.prior.expand(len(x), -1, *x.shape[2:]))


def gaussian(z: Tensor, parameters: Tensor) -> Tensor:
    mean, log_deviation = parameters.chunk(2, 1)
    terms = -0.5 * ((z - mean) * (-log_deviation).exp()) ** 2 - log_deviation - 0.5 * math.log(2 * math.pi)
    return terms.sum((1, 2, 3))
