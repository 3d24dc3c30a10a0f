"""Decodes stored pictures to uint8 arrays of one size.

A picture has one or three channels. Large files and pictures are refused, and a frame says how others become one size.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from condense.data.modes import eight_bit
from condense.errors import SourceError

Fit = Literal["auto", "pad", "resize"]
Picture = NDArray[np.uint8]  # (H, W, C), C one or three

# A training image is small; what is larger than this is a mistake or a decompression bomb.
MAX_PIXELS = 1 << 24
MAX_BYTES = 1 << 26

# Decoders that run in this process on bytes alone; Pillow's others include some that start external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Frame:
    """What every image is brought to.

    size: side of the square in pixels, or None to keep the native size.
    fit: "pad" centres in zeros, "resize" scales the shorter side to `size` and crops the centre, "auto" pads an image
        whose sides are both between 3/4 of `size` and `size` (28 to 32) and resizes any other.
    """

    size: int | None = 32
    fit: Fit = "auto"

    def apply(self, picture: Picture, where: str) -> Picture:
        """Brings the picture (H, W, C) to (size, size, C); without a size it stays as it is."""
        height, width = picture.shape[:2]
        if self.size is None or height == width == self.size:
            return picture
        within = max(height, width) <= self.size
        if self.fit == "pad" and not within:
            raise SourceError(
                f"{where}: an image of {height}x{width} does not fit into {self.size}x{self.size} by padding",
                "set data.fit=resize, or a larger data.image_size",
            )
        if self.fit == "pad" or (self.fit == "auto" and within and 4 * min(height, width) >= 3 * self.size):
            return _pad(picture, self.size)
        return _resize(picture, self.size)


def decode(data: bytes, where: str) -> Picture:
    """Decodes an image to uint8 (H, W, C), upright: grey images have one channel, all others three (see modes.py).

    Args:
        data: the bytes of a PNG, JPEG, WebP, BMP, GIF, PPM or TIFF file; of several frames the first is read.
        where: file and row, for messages.

    Raises:
        SourceError: unreadable bytes, more than MAX_BYTES or MAX_PIXELS, transparent pixels, no rule for its mode.
    """
    if len(data) > MAX_BYTES:
        raise SourceError(f"{where}: an image of {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise SourceError(
                f"{where}: an image of {image.height}x{image.width} pixels; at most {MAX_PIXELS} are read"
            )
        return eight_bit(image, where)
    except _UNREADABLE as error:
        # Pillow names the buffer that it read from, by its address in memory.
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise SourceError(
            f"{where}: not a readable image: {reason}", f"expected {', '.join(FORMATS)}; repair or remove it"
        ) from None


def encode_png(image: Tensor) -> bytes:
    """Encodes a uint8 image (C, H, W), C one or three, as a PNG file.

    It is exact, and the same bytes for the same image.
    """
    pixels = image.cpu().numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def stack(
    pictures: Iterable[tuple[str, Picture]],
    count: int,
    shape: tuple[int, int, int],
    frame: Frame,
    rows: NDArray[np.int64] | None = None,
) -> Tensor:
    """Joins pictures to one tensor, each written straight into its place.

    Args:
        pictures: (where, uint8 (H, W, C)) for each image; `where` names file and row in messages.
        count: how many there are.
        shape: (C, H, W) that every image must have once it is framed.
        rows: the row of the tensor that each picture becomes; None keeps their order.

    Returns:
        uint8 (count, C, H, W).

    Raises:
        SourceError: an image of another channel count or size, naming it.
    """
    channels, height, width = shape
    stacked = np.zeros((count, channels, height, width), dtype=np.uint8)
    filled = 0
    for where, picture in pictures:
        framed = frame.apply(picture, where)
        if framed.shape != (height, width, channels):
            _refuse_shape(framed, shape, where)
        stacked[filled if rows is None else rows[filled]] = framed.transpose(2, 0, 1)
        filled += 1
    assert filled == count
    return torch.from_numpy(stacked)


def framed_shape(picture: Picture, frame: Frame, where: str) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of a picture once it is framed."""
    height, width, channels = frame.apply(picture, where).shape
    return channels, height, width


def _pad(picture: Picture, size: int) -> Picture:
    height, width, channels = picture.shape
    padded = np.zeros((size, size, channels), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    padded[top : top + height, left : left + width] = picture
    return padded


def _resize(picture: Picture, size: int) -> Picture:
    # Scaling the centre square is scaling the shorter side and then cropping, without a rounded intermediate size.
    height, width, channels = picture.shape
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
    scaled = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(scaled, dtype=np.uint8).reshape(size, size, channels)


def _refuse_shape(picture: Picture, shape: tuple[int, int, int], where: str) -> None:
    height, width, channels = picture.shape
    if channels != shape[0]:
        raise SourceError(
            f"{where}: {channels} channel{'s' * (channels > 1)}, but the first training image has {shape[0]}",
            "convert all images to grey or all to RGB",
        )
    raise SourceError(
        f"{where}: {height}x{width} pixels, but the first training image has {shape[1]}x{shape[2]}",
        "set data.image_size to bring all images to one size",
    )
