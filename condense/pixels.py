"""Converts between bytes and floats: the only file that knows 255, 256, rounding and dequantisation.

Stored images are uint8, k from 0 to 255. Everywhere else images are float, v = k / 255 in [0, 1]. A density sees
x = (k + u) / 256 - 1/2 in [-1/2, 1/2) with u ~ U(0, 1) (METHOD section 1; Ho et al. 2019, uniform dequantisation).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def to_float(images: Tensor) -> Tensor:
    """uint8 images of any shape to float32 in [0, 1]."""
    return images.to(torch.float32).div_(LEVELS - 1)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1] of any shape to the nearest uint8 level; values outside are clamped."""
    return images.detach().clamp(0, 1).mul(LEVELS - 1).round().to(torch.uint8)


def round_straight_through(images: Tensor) -> Tensor:
    """Returns images in [0, 1] on the 8-bit grid, with the gradient of the identity (Bengio et al. 2013)."""
    rounded = images.detach().mul(LEVELS - 1).round().div(LEVELS - 1)
    return images + (rounded - images).detach()


def dequantise(images: Tensor, noise: Tensor | float = 0.5) -> Tensor:
    """Where a density sees 8-bit images: x = (k + u) / 256 - 1/2.

    Args:
        images: (N, C, H, W) in [0, 1] on the 8-bit grid; differentiable.
        noise: u in [0, 1), of the images' shape; 0.5 is the half-bin, a fixed point inside every bin.

    Returns:
        (N, C, H, W) in [-1/2, 1/2).
    """
    return (images * (LEVELS - 1) + noise) / LEVELS - 0.5


def quantise(x: Tensor) -> Tensor:
    """Returns the 8-bit images, uint8, in whose bins x of any shape lies: undoes `dequantise`; values outside are
    clamped.
    """
    return ((x + 0.5) * LEVELS).floor().clamp(0, LEVELS - 1).to(torch.uint8)
