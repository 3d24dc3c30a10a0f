"""Kinds of pixels: each is read by one rule, the same in a folder, in Parquet and by `condense bits`."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from condense.data.config import DataConfig
from condense.data.decoding import decode
from condense.data.sources import open_source
from condense.errors import SourceError
from condense.reports.measurement import measure_named
from tests.builders.sources import picture, png, write_hub

GREY, COLOUR = picture(3, 1, 6)[..., 0][:4], picture(4, 3, 6)[:4]  # (4, 6): a turned one has another shape


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(rows: np.ndarray, colour_type: int, depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Writes a PNG file by its specification: Pillow writes neither 16-bit colour nor every transparency chunk."""
    body = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour_type, 0, 0, 0)
    whole = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in whole
    )


def palette(pixels: np.ndarray, colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels, "L").convert("P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.frombytes(pixels.tobytes())
    return image


def with_alpha(pixels: np.ndarray, least: int) -> Image.Image:
    alpha = np.full((*pixels.shape[:2], 1), 255, dtype=np.uint8)
    alpha[1, 2] = least
    return Image.fromarray(np.concatenate([pixels.reshape(*alpha.shape[:2], -1), alpha], axis=-1))


# The orientation that a camera notes, and how the upright picture is stored under it.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_pictures_are_upright_as_their_exif_tag_says(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(np.ascontiguousarray(STORED[orientation](COLOUR))), kind, exif=exif, **options)
    assert np.array_equal(decode(data, "x"), COLOUR)


def test_a_tag_that_cannot_be_read_turns_nothing() -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0nonsense that is no TIFF"):
        assert np.array_equal(decode(saved(Image.fromarray(COLOUR), exif=exif), "x"), COLOUR)


INDICES = (GREY % 8).astype(np.uint8)
GREYS, COLOURS = np.repeat(np.arange(8)[:, None] * 30 + 5, 3, axis=1), picture(9, 3, 8)[0]
DEEP_GREY, DEEP_COLOUR = GREY.astype(np.int64) * 256 + 77, COLOUR.astype(np.int64) * 256 + 77
READ = {
    "grey": (saved(Image.fromarray(GREY)), GREY),
    "colour": (saved(Image.fromarray(COLOUR)), COLOUR),
    "one bit": (saved(Image.fromarray(GREY > 99)), (GREY > 99) * 255),
    "opaque grey alpha": (saved(with_alpha(GREY, 255)), GREY),
    "opaque colour alpha": (saved(with_alpha(COLOUR, 255)), COLOUR),
    "opaque WebP": (saved(with_alpha(COLOUR, 255), "WEBP", lossless=True), COLOUR),
    "grey, a level that no pixel has is transparent": (
        png_of(GREY | 1, 0, 8, (b"tRNS", struct.pack(">H", 2))),
        GREY | 1,
    ),
    "colour, a colour that no pixel has is transparent": (
        png_of((COLOUR | 1).reshape(4, -1).reshape(4, 6, 3), 2, 8, (b"tRNS", struct.pack(">HHH", 2, 2, 2))),
        COLOUR | 1,
    ),
    "palette, an entry that no pixel has is transparent": (
        saved(palette(INDICES % 7, COLOURS), transparency=7),
        COLOURS[INDICES % 7],
    ),
    "colour palette": (saved(palette(INDICES, COLOURS)), COLOURS[INDICES]),
    "grey palette": (saved(palette(INDICES, GREYS)), GREYS[INDICES, 0]),
    "grey GIF": (saved(Image.fromarray(GREY), "GIF"), GREY),
    "grey GIF of its own palette": (saved(palette(INDICES, GREYS), "GIF"), GREYS[INDICES, 0]),
    "colour GIF": (saved(palette(INDICES, COLOURS), "GIF"), COLOURS[INDICES]),
    "16-bit grey": (png_of(DEEP_GREY, 0, 16), GREY),
    "16-bit grey TIFF": (saved(Image.fromarray(DEEP_GREY.astype(np.uint16)), "TIFF"), GREY),
    "16-bit PGM": (b"P5 6 4 65535\n" + DEEP_GREY.astype(">u2").tobytes(), GREY),
    "16-bit colour": (png_of(DEEP_COLOUR, 2, 16), COLOUR),
    "16-bit colour, a colour that no pixel has is transparent": (
        png_of(DEEP_COLOUR | 256, 2, 16, (b"tRNS", struct.pack(">HHH", 512, 512, 512))),
        COLOUR | 1,
    ),
    "CMYK": (saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR),
    "CMYK JPEG": (saved(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "grey TIFF": (saved(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"), GREY),
    "colour TIFF": (saved(Image.fromarray(COLOUR), "TIFF", compression="tiff_adobe_deflate"), COLOUR),
}


@pytest.mark.parametrize("kind", READ)
def test_each_kind_of_pixel_is_read_by_its_rule(kind: str) -> None:
    data, expected = READ[kind]
    pixels = decode(data, "x")
    expected = np.asarray(expected)
    if expected.ndim == 1:
        assert np.abs(pixels.astype(int) - expected).max() <= 2  # of a JPEG
    else:
        assert np.array_equal(pixels, expected.reshape(4, 6, -1))


REFUSED = {
    "grey alpha": (saved(with_alpha(GREY, 254)), "transparency: 1 of"),
    "colour alpha": (saved(with_alpha(COLOUR, 0)), "transparency: 1 of"),
    "transparent level": (png_of(GREY * 0 + 9, 0, 8, (b"tRNS", struct.pack(">H", 9))), "transparency: 24 of"),
    "transparent colour": (png_of(COLOUR * 0 + 9, 2, 8, (b"tRNS", struct.pack(">HHH", 9, 9, 9))), "transparency: 24"),
    "transparent 16-bit level": (png_of(DEEP_GREY * 0 + 900, 0, 16, (b"tRNS", struct.pack(">H", 900))), "transparency"),
    "transparent entry": (saved(palette(INDICES * 0, COLOURS), transparency=0), "transparency: 24 of"),
    "transparent GIF": (saved(palette(INDICES * 0, COLOURS), "GIF", transparency=0), "transparency"),
    "8 bits stored as 16": (png_of(GREY.astype(np.int64), 0, 16), "upper 8 bits"),
    "32 bits": (saved(Image.fromarray(DEEP_GREY.astype(np.int32)), "TIFF"), "more than 16 bits"),
    "floats": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "more than 16 bits"),
    "LAB": (saved(Image.new("LAB", (6, 4)), "TIFF"), "colour space"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_of_pixel_without_a_rule_names_its_row_and_what_to_do(kind: str) -> None:
    data, said = REFUSED[kind]
    with pytest.raises(SourceError, match=rf"file, row 7: .*{said}.*\n.*save|file, row 7: .*{said}.*\n.*convert"):
        decode(data, "file, row 7")


def test_a_folder_a_parquet_file_and_bits_read_the_same_pixels(tmp_path: Path) -> None:
    upright = picture(1, 3, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.ascontiguousarray(STORED[6](upright)))
    odd = {"tiff": saved(turned, "TIFF", exif=exif), "png": saved(with_alpha(upright, 255))}
    odd["webp"] = saved(turned, "WEBP", exif=exif, lossless=True)
    encoded = [list(odd.values())[row % 3] for row in range(12)]
    for row, data in enumerate(encoded):
        for name in "ab":
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "pets" / name / f"{row:02d}.{list(odd)[row % 3]}").write_bytes(data)
    hub = write_hub(tmp_path / "hub.parquet", encoded * 2, [0] * 12 + [1] * 12)
    plain = write_hub(tmp_path / "plain.parquet", [png(upright)] * 24, [0] * 12 + [1] * 12)
    specs = [f"folder:{tmp_path / 'pets'}", f"parquet:{hub}", f"parquet:{plain}"]
    for spec in specs:
        images = open_source(spec, DataConfig(), seed=0).load("train").images.numpy()
        assert (images == upright.transpose(2, 0, 1)).all()
    assert len({tuple(measure_named(spec, limit=2, draws=1).report.bits_per_dim.tolist()) for spec in specs}) == 1


def test_every_suffix_of_jpeg_and_tiff_is_read_from_a_folder(tmp_path: Path) -> None:
    suffixes = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "JPE": "JPEG", "tif": "TIFF", "TIFF": "TIFF"}
    for name in "ab":
        (tmp_path / name).mkdir()
        for suffix, kind in suffixes.items():
            (tmp_path / name / f"one.{suffix}").write_bytes(saved(Image.fromarray(COLOUR), kind))
    source = open_source(f"folder:{tmp_path}", DataConfig(image_size=8), seed=0)
    assert sum(source.count(split) for split in ("train", "validation", "test")) == 2 * len(suffixes)
