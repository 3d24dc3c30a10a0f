"""Draws pictures of bits with Pillow: images sorted by their bits, histograms, maps of where the bits are.

Each function returns the bytes of a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAPPED = 15  # images whose map is drawn
SHOWN = 60  # images on one sorted picture: more do not fit a screen

_COLUMNS = 10
_CELL = 96  # pixels that an image is enlarged to, about
_GAP = 10
_LINE = 16
_MARGIN = 56
_BLUE, _RED, _GREY, _BLACK = (68, 119, 170), (204, 102, 119), (200, 200, 200), (20, 20, 20)
# Dark to light with even steps of lightness, so that a map reads the same in grey print.
_SCALE = np.array([(13, 8, 70), (86, 16, 110), (170, 44, 92), (232, 98, 48), (251, 178, 52), (252, 250, 190)])

Canvas = NDArray[np.uint8]


def spread(values: Tensor, count: int) -> Tensor:
    """Chooses the places of `count` of the values (N,), evenly over their ranks from least to most; all where N <=
    count.
    """
    order = values.argsort(stable=True)
    return order[torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()]


def sorted_images(images: Tensor, bits_per_dim: Tensor, png: Tensor, names: Sequence[str], title: str) -> bytes:
    """Draws images from least to most bits, at most SHOWN of them evenly over the ranks, with class, bits and PNG
    bytes.

    Args:
        images: uint8 (N, C, H, W).
        bits_per_dim: (N,).
        png: (N,) bytes of each image as a PNG.
        names: each image's class.
        title: first line.
    """
    places = spread(bits_per_dim, SHOWN)
    which = f"all {len(images)} images" if len(places) == len(images) else f"{len(places)} of {len(images)} images"
    cells = []
    for place in places.tolist():
        numbers = (f"{float(bits_per_dim[place]):.2f} bits/dim", f"PNG {int(png[place])} bytes")
        cells.append((_enlarged(_rgb(images[place])), (_short(names[place]), *numbers)))
    return _grid(cells, _COLUMNS, f"{title}: {which} from least to most bits")


def maps(images: Tensor, bits: Tensor, bits_per_dim: Tensor, title: str) -> bytes:
    """Draws each image beside the map of its bits, on one colour scale.

    Args:
        images: uint8 (M, C, H, W).
        bits: (M, H, W) bits per dim of each pixel, whose mean over an image is its bits per dim.
        bits_per_dim: (M,).
        title: first line.
    """
    low = min(0.0, float(bits.quantile(0.005)))
    high = max(float(bits.quantile(0.995)), low + 1e-6)
    cells = []
    for image, own, mean in zip(images, bits, bits_per_dim.tolist(), strict=True):
        coloured = _coloured(((own - low) / (high - low)).clamp(0, 1).numpy())
        pair = np.concatenate([_enlarged(_rgb(image)), _enlarged(coloured)], axis=1)
        cells.append((pair, (f"{mean:.2f} bits/dim",)))
    return _grid(cells, _COLUMNS // 2, f"{title}: where the bits are", scale=(low, high))


def histogram(flow: Tensor, png: Tensor, title: str, bins: int = 40) -> bytes:
    """Draws two histograms over one axis of bits per dim: under the flow, and as PNG files.

    The dashed line is the mean.

    Args:
        flow: (N,) bits per dim under the flow.
        png: (N,) bits per dim of the PNG files.
        title: first line.
    """
    width, panel = 900, 190
    low, high = min(0.0, float(flow.min())), float(max(flow.max(), png.max())) * 1.02 + 1e-6
    canvas = Image.new("RGB", (width, 2 * (panel + 24) + 96), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, 12), f"{title}: {len(flow)} images", fill=_BLACK, font=_font(15))
    ticks = _ticks(low, high)
    span = width - 2 * _MARGIN
    for number, (values, colour, name) in enumerate(((flow, _BLUE, "flow"), (png, _RED, "PNG"))):
        top = 44 + number * (panel + 24)
        floor = top + panel
        counts = torch.histc(values.double(), bins, low, high)
        tallest = max(float(counts.max()), 1.0)
        for place, count in enumerate(counts.tolist()):
            left = _MARGIN + span * place / bins
            if count:
                height = max((panel - 22) * count / tallest, 1)
                draw.rectangle((left, floor - height, left + span / bins - 2, floor), fill=colour)
        mean = _MARGIN + span * (float(values.mean()) - low) / (high - low)
        for y in range(top + 2, floor, 8):
            draw.line((mean, y, mean, y + 4), fill=_BLACK)
        beside = (mean + 6, "la") if mean < width / 2 else (mean - 6, "ra")
        label = f"{name}: mean {float(values.mean()):.2f} bits per dim"
        draw.text((beside[0], top), label, fill=_BLACK, font=_font(14), anchor=beside[1])
        draw.line((_MARGIN, floor, width - _MARGIN, floor), fill=_BLACK)
        draw.text((_MARGIN - 6, floor - panel + 22), f"{tallest:.0f}", fill=_BLACK, font=_font(13), anchor="rm")
        draw.text((_MARGIN - 6, floor), "0", fill=_BLACK, font=_font(13), anchor="rm")
    for tick in ticks:
        x = _MARGIN + span * (tick - low) / (high - low)
        draw.line((x, floor, x, floor + 5), fill=_BLACK)
        draw.text((x, floor + 8), f"{tick:g}", fill=_BLACK, font=_font(13), anchor="ma")
    draw.text((width / 2, floor + 28), "bits per dim", fill=_BLACK, font=_font(14), anchor="ma")
    return _png(canvas)


def _grid(
    cells: Sequence[tuple[Canvas, Sequence[str]]],
    columns: int,
    title: str,
    scale: tuple[float, float] | None = None,
) -> bytes:
    """Cells of equal size, each with its lines of text beneath; a colour bar where there is a scale."""
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    height, width = cells[0][0].shape[:2]
    step_x = max(width, _CELL) + _GAP
    step_y = height + _LINE * len(cells[0][1]) + 2 * _GAP
    across = max(columns * step_x + _GAP, round(_font(15).getlength(title)) + 2 * _GAP)
    top = 40
    canvas = Image.new("RGB", (across, top + rows * step_y + (56 if scale else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 12), title, fill=_BLACK, font=_font(15))
    for number, (pixels, lines) in enumerate(cells):
        x, y = _GAP + number % columns * step_x, top + number // columns * step_y
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_GREY)
        canvas.paste(Image.fromarray(pixels), (x, y))
        for line, text in enumerate(lines):
            draw.text((x, y + height + 3 + line * _LINE), text, fill=_BLACK, font=_font(12))
    if scale:
        low, high = scale
        length, y = min(360, across - 2 * _MARGIN), top + rows * step_y + 4
        bar = np.broadcast_to(_coloured(np.linspace(0, 1, length)), (14, length, 3))
        canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (_GAP, y))
        for tick in _ticks(low, high):
            x = _GAP + round((length - 1) * (tick - low) / (high - low))
            draw.line((x, y + 14, x, y + 18), fill=_BLACK)
            draw.text((x, y + 20), f"{tick:g}", fill=_BLACK, font=_font(12), anchor="ma")
        draw.text((_GAP + length + 16, y), "bits per dim of a pixel", fill=_BLACK, font=_font(12))
    return _png(canvas)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, about eight."""
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1e3, 1e5, 1e9) if (high - low) / step <= 10)
    first = int(np.ceil(low / step))
    return [round(number * step, 6) for number in range(first, int(np.floor(high / step)) + 1)]


def _coloured(shares: NDArray[np.floating]) -> Canvas:
    """Returns values in [0, 1] of any shape (...) as colours (..., 3)."""
    at = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(shares, at, _SCALE[:, part]) for part in range(3)], axis=-1).astype(np.uint8)


def _rgb(image: Tensor) -> Canvas:
    """uint8 (C, H, W) as (H, W, 3)."""
    return np.ascontiguousarray(image.cpu().expand(3, -1, -1).permute(1, 2, 0).numpy())


def _enlarged(pixels: Canvas) -> Canvas:
    """(H, W, 3) by a whole factor to about _CELL pixels, without smoothing."""
    factor = max(1, _CELL // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _short(name: str, width: int = _CELL) -> str:
    """Returns the name, cut to the width of a cell."""
    while _font(12).getlength(name) > width:
        name = name.rstrip("…")[:-1] + "…"
    return name


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _png(canvas: Image.Image) -> bytes:
    stream = io.BytesIO()
    canvas.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
