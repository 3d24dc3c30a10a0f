"""Lays many images out as one picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from condense.errors import TrackingError
from condense.pixels import LEVELS

GAP = 2  # pixels between images of a grid


SIDE = 640  # a grid is enlarged up to this many pixels: experiment UIs show cells of a few hundred


def image_grid(images: Tensor, columns: int | None = None, *, images_per_class: int = 1) -> Tensor:
    """Returns one picture of many images, row by row, 2 px apart on white, enlarged by a whole factor without
    smoothing.

    Args:
        images: uint8 (N, C, H, W), C one or three, sorted by class.
        columns: images a row; None chooses the most nearly square grid in which a row holds whole classes or a class
            fills whole rows.
        images_per_class: the images of a class, which follow each other.

    Returns:
        uint8 (3, H', W').

    Raises:
        TrackingError: for images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise TrackingError(
            f"expected uint8 images (N, C, H, W) with one or three channels, got {images.dtype} {tuple(images.shape)}"
        )
    count, _, height, width = images.shape
    columns = min(columns or _square_columns(count, images_per_class), count)
    rows = math.ceil(count / columns)
    factor = max(1, SIDE // max(rows * height, columns * width))
    white = float(LEVELS - 1)
    cells = interpolate(images.cpu().expand(-1, 3, -1, -1).float(), scale_factor=factor, mode="nearest")
    cells = pad(cells, (0, GAP, 0, GAP), value=white)
    cells = torch.cat([cells, cells.new_full((rows * columns - count, *cells.shape[1:]), white)])
    grid = cells.reshape(rows, columns, *cells.shape[1:]).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return pad(grid, (GAP, 0, GAP, 0), value=white).to(torch.uint8)


def _square_columns(count: int, images_per_class: int) -> int:
    whole = [
        columns for columns in range(1, count + 1) if not columns % images_per_class or not images_per_class % columns
    ]
    root = math.sqrt(count)

    def elongation(columns: int) -> tuple[float, int]:
        return round(abs(math.log(columns / root)), 9), columns

    return min(whole, key=elongation)
