"""Bits per dimension, and the Density seam behind which they are computed.

    bits_per_dim(x) = 8 - log2 p(x) / D,  x = (k + u) / 256 - 1/2,  D = C H W        (METHOD, section 1)

ln p is a density on [-1/2, 1/2)^D, so a uniform density costs exactly 8, and E_u[bits_per_dim] >= 0 for every image
(Theis et al. 2016, equation 4: the expectation bounds the negative log-probability of the 8-bit image).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condense.errors import FlowError
from condense.pixels import LEVELS, dequantise, to_float
from condense.seeding import generator as make_generator


@runtime_checkable
class Density(Protocol):
    """What bits are computed from.

    shape: (C, H, W) of the images. digest: identity of the yardstick; bits under unequal digests are not compared.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def digest(self) -> str: ...

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns ln p(x) in nats, (N,), for x (N, C, H, W) in [-1/2, 1/2); finite and differentiable in x."""


class UniformDensity:
    """The uniform density on [-1/2, 1/2)^D: every image costs 8 bits per dimension.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.digest = hashlib.sha256(f"uniform/{shape}".encode()).hexdigest()

    def log_prob(self, x: Tensor) -> Tensor:
        """Zeros (N,), with a zero gradient to x."""
        return self.log_prob_map(x).sum(dim=(1, 2))

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Zeros (N, H, W)."""
        return (x * 0).sum(dim=1)


@dataclass(frozen=True)
class BitsReport:
    """Bits of N images under one density.

    bits_per_dim: (N,) float64, mean over the draws. bits: (N,), the same times D. png_bytes: (N,) int64, size as an
    optimised PNG file. standard_errors: (N,) float64, Monte-Carlo error of each of `bits_per_dim` that comes from the
    finite number of dequantisation draws; None for one draw, which has no estimate. digest: of the density.
    """

    bits_per_dim: Tensor
    bits: Tensor
    png_bytes: Tensor
    standard_errors: Tensor | None
    draws: int
    digest: str

    @property
    def mean(self) -> float:
        """Mean bits per dimension over the images."""
        return float(self.bits_per_dim.mean())

    @property
    def standard_error(self) -> float | None:
        """Monte-Carlo error of `mean`: the images' noise is independent, so their variances add."""
        if self.standard_errors is None:
            return None
        return float(self.standard_errors.square().sum().sqrt()) / len(self.bits_per_dim)

    def of(self, chosen: Tensor) -> BitsReport:
        """Returns the report of some of the images; `chosen` is a mask (N,) or row numbers."""
        errors = None if self.standard_errors is None else self.standard_errors[chosen]
        kept = self.bits_per_dim[chosen], self.bits[chosen], self.png_bytes[chosen]
        return BitsReport(*kept, errors, self.draws, self.digest)


def bits_per_dim(density: Density, images: Tensor, noise: torch.Generator | Tensor | None = None) -> Tensor:
    """Computes the bits per dimension of each image, differentiable in `images`.

    Args:
        density: the yardstick.
        images: (N, C, H, W) in [0, 1] on the 8-bit grid (see pixels.round_straight_through).
        noise: a generator of u ~ U(0, 1) on the images' device, or u itself in the images' shape; None takes the
            half-bin u = 1/2. An optimiser needs fresh draws: at fixed points of the bins the bound at zero does not
            hold.

    Returns:
        (N,)

    Raises:
        FlowError: the images are not of the density's shape.
    """
    _check_shape(density, images)
    if noise is None:
        return _bits(density, images, 0.5)
    if isinstance(noise, torch.Generator):
        noise = torch.rand(images.shape, generator=noise, dtype=images.dtype, device=images.device)
    return _bits(density, images, noise)


@torch.no_grad()
def measure(
    density: Density,
    images: Tensor,
    *,
    seed: int,
    draws: int = 1,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> BitsReport:
    """Measures the bits of stored images, with noise that depends on (seed, draw, index of the image) alone.

    Args:
        density: the yardstick, on `device`.
        images: uint8 (N, C, H, W).
        seed: of the dequantisation noise.
        draws: noise draws per image.
        batch_size: images at once; changes the result by rounding only.
        device: where the density is evaluated. The noise is drawn on the CPU, so that it is the same on every device.

    Raises:
        FlowError: the images are not of the density's shape, or not uint8.
    """
    _check_shape(density, images)
    if images.dtype != torch.uint8:
        raise FlowError(f"measure takes stored uint8 images, got {images.dtype}", "use bits_per_dim for float images")
    per_draw = torch.empty(draws, len(images), dtype=torch.float64)
    for draw in range(draws):
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            noise = measuring_noise(chunk.shape[1:], range(start, start + len(chunk)), seed=seed, draw=draw)
            bits = _bits(density, to_float(chunk).to(device), noise.to(device))
            per_draw[draw, start : start + len(chunk)] = bits.double().cpu()
    dims = math.prod(density.shape)
    mean = per_draw.mean(0)
    errors = per_draw.std(0) / math.sqrt(draws) if draws > 1 else None
    return BitsReport(mean, mean * dims, png_bytes(images), errors, draws, density.digest)


def measuring_noise(shape: Sequence[int], rows: Iterable[int], *, seed: int, draw: int) -> Tensor:
    """Returns the noise u (rows, C, H, W) of one draw that `measure` adds to these rows; `shape` is (C, H, W)."""
    draws = (make_generator(seed, "dequantisation", step=draw, index=row) for row in rows)
    return torch.stack([torch.rand(tuple(shape), generator=draw) for draw in draws])


def png_bytes(images: Tensor) -> Tensor:
    """Returns the size in bytes, (N,) int64, of each of the uint8 images (N, C, H, W) as an optimised PNG file."""
    return torch.tensor([_png_size(image) for image in images.cpu().numpy()], dtype=torch.int64)


def _bits(density: Density, images: Tensor, noise: Tensor | float) -> Tensor:
    log_prob = density.log_prob(dequantise(images, noise))
    return math.log2(LEVELS) - log_prob / (math.log(2) * math.prod(density.shape))


def _png_size(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    buffer = io.BytesIO()
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True, compress_level=9)
    return buffer.tell()


def _check_shape(density: Density, images: Tensor) -> None:
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(density.shape):
        raise FlowError(
            f"the flow measures images of shape (N, {', '.join(map(str, density.shape))}), got {tuple(images.shape)}",
            "take a flow of the images' shape, or bring the images to the flow's",
        )
