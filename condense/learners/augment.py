"""Augments normalised images. Zero is the mean colour: padding and cutout leave it.

Differentiable Siamese augmentation (DSA; Zhao, Bilen 2021) is one random transform out of six, the same wherever its
draw is applied. A draw holds its numbers, and `augment` applies it. `crop_scale_rotate` is the older augmentation that
the authors of DC train their MNIST evaluation networks with: a transform of its own for each image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense.workers.devices import to_device

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
TOGETHER = ("color", "crop", "cutout")  # Kim et al. 2022 apply these three, one after the other

# How images are augmented while they are matched and while learners are trained in between: one of the six, or all of
# TOGETHER.
Augmentation = Literal["none", "dsa", "color-crop-cutout"]

# Strengths of the published code.
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, FLIP, SCALE, ROTATE_DEGREES = 0.125, 0.5, 0.5, 1.2, 15.0
DC_CROP_PIXELS, DC_SCALE, DC_ROTATE_DEGREES = 4, 0.2, 45.0


class Draw(NamedTuple):
    """One transform and its uniform numbers in [0, 1): (n, 4), n the number of images or 1 for all alike."""

    kind: str
    numbers: Tensor


def draw_transform(generator: torch.Generator, count: int, *, flip: bool = True) -> Draw:
    """Draws one of the six transforms, for `count` images; without flip where it would change the class."""
    kinds = STRATEGIES if flip else tuple(kind for kind in STRATEGIES if kind != "flip")
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    return Draw(kind, torch.rand((count, 4), generator=generator))


def draw_transforms(
    augmentation: Augmentation, generator: torch.Generator, count: int, *, flip: bool = True
) -> tuple[Draw, ...]:
    """Draws the transforms of one augmentation, to be applied in order, with numbers for `count` images."""
    if augmentation == "none":
        return ()
    if augmentation == "dsa":
        return (draw_transform(generator, count, flip=flip),)
    return tuple(Draw(kind, torch.rand((count, 4), generator=generator)) for kind in TOGETHER)


def augment_classes(images: Tensor, draws: Sequence[tuple[Draw, ...]]) -> Tensor:
    """Augments images (C, n, channels, H, W): all images of a class alike, by the class's own draws (of one number
    each).
    """
    for stage in zip(*draws, strict=True):
        parts, order = [], []
        for kind in sorted({draw.kind for draw in stage}):
            chosen = [index for index, draw in enumerate(stage) if draw.kind == kind]
            numbers = torch.cat([stage[index].numbers for index in chosen]).repeat_interleave(images.shape[1], 0)
            rows = to_device(torch.tensor(chosen), images.device)
            changed = augment(images[rows].flatten(0, 1), Draw(kind, numbers))
            parts.append(changed.unflatten(0, (len(chosen), images.shape[1])))
            order += chosen
        images = torch.cat(parts)[to_device(torch.tensor(order).argsort(), images.device)]
    return images


def augment(images: Tensor, draw: Draw) -> Tensor:
    """Transforms normalised images (N, C, H, W); differentiable in them."""
    numbers = to_device(draw.numbers, images.device, images.dtype).expand(len(images), 4)
    match draw.kind:
        case "color":
            return _color(images, numbers)
        case "crop":
            return _shift(images, numbers)
        case "cutout":
            return _cutout(images, numbers)
        case "flip":
            return torch.where((numbers[:, 0] < FLIP)[:, None, None, None], images.flip(3), images)
        case "scale":
            low = 1 / SCALE
            return _affine(
                images,
                numbers[:, 0] * (SCALE - low) + low,
                numbers[:, 1] * (SCALE - low) + low,
                torch.zeros_like(numbers[:, 0]),
            )
        case _:
            ones = torch.ones_like(numbers[:, 0])
            return _affine(images, ones, ones, (2 * numbers[:, 0] - 1) * math.radians(ROTATE_DEGREES))


def crop_scale_rotate(images: Tensor, draws: torch.Generator) -> Tensor:
    """Shifts each of the images (N, C, H, W) by up to 4 pixels, or scales its sides by 0.8 to 1.2, or rotates it by up
    to 45 degrees. What comes into view has the mean colour of all images (published code of Zhao et al. 2021).
    """
    count, _, height, width = images.shape
    kind = torch.randint(3, (count,), generator=draws)
    numbers = 2 * torch.rand((count, 2), generator=draws) - 1
    shift = torch.where((kind == 0)[:, None], (numbers * (DC_CROP_PIXELS + 0.5)).round(), 0.0)
    scale = torch.where((kind == 1)[:, None], 1 + DC_SCALE * numbers, 1.0)
    angle = torch.where(kind == 2, math.radians(DC_ROTATE_DEGREES) * numbers[:, 0], 0.0)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2)
    move = 2 * shift / torch.tensor([width, height])
    theta = to_device(torch.cat([rotation / scale[:, None], move[:, :, None]], 2), images.device, images.dtype)
    fill = images.mean((0, 2, 3), keepdim=True)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def _color(images: Tensor, numbers: Tensor) -> Tensor:
    brightness, saturation, contrast = (numbers[:, i, None, None, None] for i in range(3))
    images = images + (brightness - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + CONTRAST) + mean


def _shift(images: Tensor, numbers: Tensor) -> Tensor:
    height, width = images.shape[2:]
    down, right = int(height * CROP + 0.5), int(width * CROP + 0.5)
    dy = (numbers[:, 0] * (2 * down + 1)).long()
    dx = (numbers[:, 1] * (2 * right + 1)).long()
    padded = F.pad(images, (right, right, down, down))
    rows = torch.arange(height, device=images.device) + dy[:, None]
    columns = torch.arange(width, device=images.device) + dx[:, None]
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, numbers: Tensor) -> Tensor:
    height, width = images.shape[2:]
    size_y, size_x = int(height * CUTOUT + 0.5), int(width * CUTOUT + 0.5)
    top = (numbers[:, 0] * (height + 1 - size_y % 2)).long() - size_y // 2
    left = (numbers[:, 1] * (width + 1 - size_x % 2)).long() - size_x // 2
    rows = torch.arange(height, device=images.device) - top[:, None]
    columns = torch.arange(width, device=images.device) - left[:, None]
    hole = ((rows >= 0) & (rows < size_y))[:, :, None] & ((columns >= 0) & (columns < size_x))[:, None, :]
    return images * (~hole)[:, None].to(images.dtype)


def _affine(images: Tensor, scale_x: Tensor, scale_y: Tensor, angle: Tensor) -> Tensor:
    zeros = torch.zeros_like(angle)
    top = torch.stack([scale_x * angle.cos(), -scale_y * angle.sin(), zeros], 1)
    bottom = torch.stack([scale_x * angle.sin(), scale_y * angle.cos(), zeros], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
