"""Measures bits at a lower precision than float32, and refuses it where it is off.

It is faster where the processor has it. Condensation may ask for the gradient of its bits in bfloat16. What is reported
is always measured in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from condense.errors import FlowError
from condense.flow.bits import Density, bits_per_dim
from condense.pixels import to_float
from condense.seeding import generator

Precision = Literal["float32", "bfloat16"]

# Bits per dim on the probe. The shipped yardsticks' errors are in benchmarks/flow; real images lie whole bits apart.
BFLOAT16_TOLERANCE = 0.05


class InBfloat16:
    """A density whose networks are evaluated in bfloat16, by autocast; invertible maps and sums stay in float32.

    Args:
        density: a flow.

    Raises:
        FlowError: on some probe image its bits per dim differ from float32's by more than BFLOAT16_TOLERANCE.
    """

    def __init__(self, density: Density, device: torch.device | str = "cpu") -> None:
        self._density = density
        self.shape, self.digest = density.shape, density.digest
        images = to_float(probe_images(density.shape)).to(device)
        noise = torch.rand(images.shape, generator=generator(0, "precision-probe")).to(device)
        with torch.no_grad():
            errors = (bits_per_dim(self, images, noise) - bits_per_dim(density, images, noise)).abs()
        worst = float(errors.max())
        if not worst <= BFLOAT16_TOLERANCE:  # not a number is refused too
            raise FlowError(
                f"flow {self.digest[:12]} in bfloat16 is off by {worst:.2g} bits per dim on a probe image; at most "
                f"{BFLOAT16_TOLERANCE} is accepted",
                "set bits_precision=float32",
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """ln p(x) in nats, (N,), float32, for x (N, C, H, W) in [-1/2, 1/2); differentiable in x."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self._density.log_prob(x).float()


def at_precision(density: Density, precision: Precision, device: torch.device | str = "cpu") -> Density:
    """Returns the density at a precision; raises FlowError where that is too far from float32 (see InBfloat16)."""
    return density if precision == "float32" else InBfloat16(density, device)


def probe_images(shape: tuple[int, int, int]) -> Tensor:
    """uint8 images where optimisers start and end: black, greys, white, halves, a border, soft blobs, noise."""
    height, width = shape[1:]
    levels = [torch.full(shape, level, dtype=torch.uint8) for level in (*range(0, 256, 8), 1, 127, 254, 255)]
    left, top, border = (torch.zeros(shape, dtype=torch.uint8) for _ in range(3))
    left[:, :, : width // 2] = top[:, : height // 2] = border[:, 2:-2, 2:-2] = 255
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    blob = (255 * torch.exp(-4 * (x.square() + y.square()))).to(torch.uint8).expand(shape)
    draws = generator(0, "precision-images")
    noise = [torch.randint(256 // part, shape, generator=draws, dtype=torch.uint8) for part in (1, 8)]
    return torch.stack([*levels, left, top, border, blob, *noise])
