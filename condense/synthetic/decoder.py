"""Decodes a stored image to the images that learners see: the multi-formation of IDC (Kim et al. 2022).

A stored canvas is cut into factor x factor squares, and each is enlarged bilinearly to the canvas's size: factor^2
training images for the bits of one. Decoded images are rounded to the 8-bit grid, so that matching, evaluation and
readers of the file see the same ones. Factor 1 is the canvas itself.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense.errors import ConfigError
from condense.pixels import round_straight_through, to_float, to_uint8


def check_factor(factor: int, shape: tuple[int, int, int]) -> None:
    """Refuses a factor that does not divide the sides of images of `shape` (C, H, W).

    Raises:
        ConfigError: naming the factor and the size.
    """
    height, width = shape[1:]
    if height % factor or width % factor:
        raise ConfigError(
            f"images.factor {factor} does not divide the images' {height}x{width} pixels",
            "choose a factor that does, or another data.image_size",
        )


def decode(images: Tensor, factor: int) -> Tensor:
    """Decodes canvases (N, C, H, W) in [0, 1] to their images (N * factor^2, C, H, W), a canvas's images row by row.

    Differentiable in the canvases; the rounding has a straight-through gradient.
    """
    if factor == 1:
        return images
    count, channels, height, width = images.shape
    squares = images.view(count, channels, factor, height // factor, factor, width // factor)
    squares = squares.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // factor, width // factor)
    return round_straight_through(F.interpolate(squares, (height, width), mode="bilinear", align_corners=False))


def decode_uint8(images: Tensor, factor: int) -> Tensor:
    """Decodes stored canvases, uint8 (N, C, H, W), to uint8 (N * factor^2, C, H, W)."""
    return images if factor == 1 else to_uint8(decode(to_float(images), factor))


def decode_set(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Returns what learners are trained on: the images of canvases, which share a canvas's label, and labels (N,) or
    (N, classes).
    """
    return decode_uint8(images, factor), labels.repeat_interleave(factor**2, 0)


def tile(images: Tensor, factor: int) -> Tensor:
    """Makes the canvases (N, C, H, W) whose squares are images (N * factor^2, C, H, W), scaled down by averaging."""
    if factor == 1:
        return images
    _, channels, height, width = images.shape
    squares = F.avg_pool2d(images, factor).view(-1, factor, factor, channels, height // factor, width // factor)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)
