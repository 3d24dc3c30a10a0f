"""Maps where in an image its bits are: bits per pixel, which add up to the image's bits.

A flow's log-density is a sum of terms: ln p(z | h) of its latents and ln |det| of its layers. Each term belongs to one
position of one scale. A position whose scale is s times coarser than the image stands for a patch of s x s pixels, and
its terms are spread evenly over them. A term without a position is spread over all pixels:

    map(i, j) = 8 C - 1 / ln 2 * sum over scales s of s^-2 (terms of the position that covers pixel (i, j))

The sum over the pixels is the image's bits, by construction and to rounding. The map shows the code length of a patch,
given what the flow already knows there. A pixel may be below zero, because a density has no upper bound.

Occlusion (the bits that are saved where a patch is replaced by its mean) would be another map. It needs no seam, but
one evaluation for each patch, it does not add up, and it charges a patch for the edges of what replaced it.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from condense.errors import FlowError
from condense.flow.bits import Density, measuring_noise
from condense.pixels import LEVELS, dequantise, to_float


@runtime_checkable
class MappedDensity(Density, Protocol):
    """A density that says where its log-density comes from."""

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Returns nats per pixel, (N, H, W), for x (N, C, H, W). Their sum over an image is `log_prob`, to rounding."""


@torch.no_grad()
def bits_map(
    density: Density,
    images: Tensor,
    rows: Tensor | None = None,
    *,
    seed: int,
    draws: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Maps the bits of each pixel of stored images.

    They add up to what `bits.measure` finds with the same seed and draws.

    Args:
        density: the yardstick, on `device`.
        images: uint8 (N, C, H, W), as `measure` takes them.
        rows: (M,) int64, which of the images; None takes all.
        seed: of the dequantisation noise.
        draws: noise draws per image, whose mean it is.
        device: where the density is evaluated.

    Returns:
        (M, H, W) float64.

    Raises:
        FlowError: the density has no map, or is not of the images' shape.
    """
    if not isinstance(density, MappedDensity):
        raise FlowError("this density does not say where its bits are", "take a flow: a shipped name or a flow file")
    if tuple(images.shape[1:]) != tuple(density.shape):
        raise FlowError(f"the flow measures images of shape {density.shape}, got {tuple(images.shape[1:])}")
    rows = torch.arange(len(images)) if rows is None else rows
    total = torch.zeros(len(rows), *images.shape[2:], dtype=torch.float64)
    for draw in range(draws):
        for part in torch.arange(len(rows)).split(64):
            noise = measuring_noise(density.shape, rows[part].tolist(), seed=seed, draw=draw)
            x = dequantise(to_float(images[rows[part]]), noise).to(device)
            total[part] += density.log_prob_map(x).double().cpu()
    return math.log2(LEVELS) * images.shape[1] - total / (math.log(2) * draws)
