"""Turns an opened picture into 8-bit grey or RGB, upright: one rule for each kind of pixel, listed in docs/data.md."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condense.errors import SourceError

ORIENTATION = 0x0112  # the EXIF tag; its values are 1 (upright) to 8
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def eight_bit(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Returns an opened picture as uint8 (H, W, C): C is one for grey ones, three for all others.

    Args:
        image: of any mode; it is unpacked here.
        where: file and row, for messages.

    Raises:
        SourceError: a transparent pixel, more than 16 bits a channel, a colour space without a rule.
    """
    image.load()
    pixels = _pixels(_upright(image), where)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _upright(image: Image.Image) -> Image.Image:
    """Turns the picture as its EXIF tag says; a tag that cannot be read turns nothing."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info, turned.format = image.info, image.format
    return turned


def _pixels(image: Image.Image, where: str) -> NDArray[np.uint8]:
    mode = image.mode
    # Pillow gives the 16 bits of a PGM file as mode I; elsewhere that mode is 32 bits.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PPM", "PNG")):
        return _upper_byte(image, where)
    if mode == "1":
        image = image.convert("L")
    elif mode in ("P", "PA"):
        grey = _is_grey(image)
        image = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
        rgb = _without_alpha(image, where)
        return rgb[:, :, 0] if grey else rgb
    elif mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    if image.mode not in ("L", "RGB", "LA", "RGBA", "RGBX"):
        kind = "an image of more than 16 bits a channel" if mode in ("I", "F") else "an image of a colour space"
        raise SourceError(f"{where}: {kind} that is not read (mode {mode})", "convert the images to 8-bit grey or RGB")
    return _without_alpha(image, where)


def _upper_byte(image: Image.Image, where: str) -> NDArray[np.uint8]:
    # Pillow reads 16-bit colour by the upper byte too.
    deep = np.asarray(image).astype(np.int64)
    transparent: Any = image.info.get("transparency")
    _refuse_transparent(deep == transparent if isinstance(transparent, int) else None, where)
    if 0 < deep.max() < 256:
        raise SourceError(
            f"{where}: a 16-bit image without a value above {deep.max()}: its upper 8 bits, which are read, are 0",
            "save such images with 8 bits a channel",
        )
    return (deep >> 8).astype(np.uint8)


def _is_grey(image: Image.Image) -> bool:
    colours = np.array(image.getpalette("RGB") or (), dtype=np.int64).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _without_alpha(image: Image.Image, where: str) -> NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8)
    if image.mode in ("LA", "RGBA"):
        _refuse_transparent(pixels[..., -1] < 255, where)
        pixels = pixels[..., :-1]
        return pixels[..., 0] if image.mode == "LA" else pixels
    if image.mode == "RGBX":
        return pixels[..., :3]
    # A chunk of the file may name one grey level or colour that is transparent; of 16 bits the upper byte is here.
    transparent: Any = image.info.get("transparency")
    if image.mode == "L" and isinstance(transparent, int):
        _refuse_transparent(pixels == transparent, where)
    if image.mode == "RGB" and isinstance(transparent, tuple):
        colour = [value >> 8 if max(transparent) > 255 else value for value in transparent]
        _refuse_transparent((pixels == np.array(colour)).all(axis=-1), where)
    return pixels


def _refuse_transparent(mask: NDArray[np.bool_] | None, where: str) -> None:
    if mask is not None and mask.any():
        raise SourceError(
            f"{where}: an image with transparency: {int(mask.sum())} of its pixels are not opaque",
            "paste the images onto a background and save them without alpha",
        )
