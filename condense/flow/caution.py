"""Says where a flow's bits are not what the eye says. It is measured on made images and put on the flow's card.

A density is learned from pictures of some kind. What it never saw it can only call surprising: a smooth ramp may cost
more than a smooth photograph, and a pattern that repeats at every pixel more than noise. No flow is free of it. So each
card says how far its own goes, with PNG beside.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from condense.flow.bits import Density, measure
from condense.pixels import LEVELS, to_uint8
from condense.seeding import generator

SENTENCES = (
    "Bits are a code length under this flow, not bytes on disk: PNG bytes stand beside them, and bits of two flows are "
    "not compared.",
    "Images unlike its training data cost more than they look: smooth or enlarged ones, negatives, periodic patterns. "
    "Compare bits within one source.",
    "It codes 8-bit images and does not see that fewer levels were used, or that a JPEG file would be small: such "
    "images may cost more than the original.",
)
GREY = "Grey images copied to three channels say no more and cost more, since it codes the copies too: use a grey flow."


def caution(density: Density, *, count: int = 16, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns what the card says: `sentences`, and for each kind of made images their bits.

    Returns:
        Plain values: {"sentences": [...], "made_images": {kind: {"bits_per_dim": median, "most": largest,
        "png_bits_per_dim": mean}}}, over `count` images of each kind; None where bits are not finite.
    """
    found = {}
    dims = density.shape[0] * density.shape[1] * density.shape[2]
    for name, images in odd_images(density.shape, count).items():
        report = measure(density, images, seed=0, device=device)
        found[name] = {
            "bits_per_dim": _rounded(float(report.bits_per_dim.median())),
            "most": _rounded(float(report.bits_per_dim.max())),
            "png_bits_per_dim": round(float(report.png_bytes.double().mean()) * 8 / dims, 3),
        }
    sentences = [*SENTENCES, *([GREY] if density.shape[0] == 3 else [])]
    return {"sentences": sentences, "made_images": found}


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None  # JSON knows no infinity


def odd_images(shape: tuple[int, int, int], count: int) -> dict[str, Tensor]:
    """uint8 images (count, C, H, W) by kind: constants, smooth ones, periodic patterns, noise. Always the same."""
    channels, height, width = shape
    draws = generator(0, "odd-images")
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    level = torch.rand((count, channels, 1, 1, 3), generator=draws)
    centre = torch.rand((count, 1, 1, 1, 2), generator=draws)
    coarse = torch.rand((count, channels, 4, 4), generator=draws)
    period = torch.randint(1, 4, (count, 1, 1, 1), generator=draws)
    row, column = torch.arange(height)[:, None] // period, torch.arange(width) // period
    noise = torch.randint(LEVELS, (count, *shape), generator=draws, dtype=torch.uint8)
    blob = torch.exp(-((x - centre[..., 0]) ** 2 + (y - centre[..., 1]) ** 2) / 0.08)
    kinds = {
        "constant": level[..., 0].expand(-1, -1, height, width),
        "ramps": level[..., 0] + (level[..., 1] - 0.5) * x + (level[..., 2] - 0.5) * y,
        "soft blobs": blob * level[..., 0],
        "4x4 noise enlarged smoothly": interpolate(coarse, size=(height, width), mode="bicubic"),
        "stripes of 1 to 3 pixels": torch.where((row + 0 * column) % 2 == 0, level[..., 0], level[..., 1]),
        "checkerboards of 1 to 3 pixels": torch.where((row + column) % 2 == 0, level[..., 0], level[..., 1]),
        "black and white checkerboard": ((torch.arange(height)[:, None] + torch.arange(width)) % 2)
        .float()
        .expand(count, *shape),
    }
    return {name: to_uint8(images) for name, images in kinds.items()} | {"noise": noise}
