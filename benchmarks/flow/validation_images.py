"""The images, file sizes, ranks, table and figure of validation.py."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import gaussian_blur

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.flow.caution import odd_images
from condense.flow.mixture import to_channels
from condense.pixels import to_float, to_uint8
from condense.seeding import generator
from condense.synthetic.controls import jpeg

COMMAND = "    OMP_NUM_THREADS=1 python -m benchmarks flow-validation --data FOLDER --second FOLDER2"
SIDE = 32


def real(data: Path, channels: int, count: int) -> dict[str, Tensor]:
    """`count` images of each source that no flow was trained on: uint8 (count, channels, 32, 32).

    Test splits; CINIC-10's natural part has none, and none of its images is in a training set. Grey ones are copied to
    three channels for a colour flow, colour ones taken by luminance for a grey flow.
    """
    found = {}
    for name in ("mnist", "fashion_mnist", "cifar10"):
        loaded = open_source(f"parquet:{data}/{name}_train.parquet", DataConfig(), seed=0).load("test", limit=count)
        found[name] = loaded.images
    natural = open_source(f"parquet:{data}/cinic10_natural.parquet", DataConfig(), seed=0)
    found["cinic10"] = natural.load("train", limit=count).images
    return {name: of_channels(images, channels) for name, images in found.items()}


def of_channels(images: Tensor, channels: int) -> Tensor:
    return images.expand(-1, 3, -1, -1) if channels == 3 else to_channels(images, 1, "benchmark")


def real_grey(images: Tensor) -> Tensor:
    return to_channels(images, 1, "benchmark")


def constant(count: int, channels: int) -> Tensor:
    """Half grey, half of any colour."""
    level = torch.randint(256, (count, channels, 1, 1), generator=generator(0, "constant"), dtype=torch.uint8)
    level[::2] = level[::2, :1]
    return level.expand(-1, -1, SIDE, SIDE)


def noise(count: int, channels: int) -> Tensor:
    return torch.randint(256, (count, channels, SIDE, SIDE), generator=generator(0, "noise"), dtype=torch.uint8)


def blurred(images: Tensor, sigma: float) -> Tensor:
    return to_uint8(gaussian_blur(to_float(images), [13, 13], [sigma, sigma]))


def of_quality(images: Tensor, quality: float) -> Tensor:
    return jpeg(images, int(quality))


def of_depth(images: Tensor, bits: float) -> Tensor:
    """The images on 2^bits evenly spaced levels from 0 to 255."""
    steps = 2 ** int(bits) - 1
    return to_uint8((to_float(images) * steps).round() / steps)


Change = Callable[[Tensor, float], Tensor]
DEGRADATIONS: tuple[tuple[str, tuple[float | None, ...], Change], ...] = (
    ("Gaussian blur, sigma", (None, 0.4, 0.6, 1.0, 1.5, 2.5), blurred),
    ("JPEG quality", (None, 95, 75, 50, 25, 10), of_quality),
    ("bits a pixel", (None, 7, 6, 5, 4, 3, 2), of_depth),
)


def odd(channels: int, count: int, known: dict[str, Tensor]) -> dict[str, Tensor]:
    """Images unlike those that a flow is trained on: those of its card, enlarged ones, negatives, turned ones."""
    digits = open_source("digits", DataConfig(), seed=0).load("train", limit=count).images
    half = interpolate(to_float(known["cifar10"][:count]), scale_factor=0.5, mode="area")
    return odd_images((channels, SIDE, SIDE), count) | {
        "8x8 digits enlarged": of_channels(digits, channels),
        "MNIST": known["mnist"][:count],
        "MNIST in negative": 255 - known["mnist"][:count],
        "CIFAR-10 at half size, enlarged": to_uint8(interpolate(half, scale_factor=2.0, mode="bilinear")),
        "CIFAR-10 in negative": 255 - known["cifar10"][:count],
        "CIFAR-10 upside down": known["cifar10"][:count].flip(2),
    }


def sizes(images: Tensor, form: str) -> Tensor:
    """Bytes (N,) of each image as an optimised PNG or a lossless WebP file."""
    options: dict[str, Any] = {"PNG": {"optimize": True}, "WEBP": {"lossless": True, "quality": 100, "method": 6}}[form]
    found = []
    for image in images.numpy():
        stream = io.BytesIO()
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        Image.fromarray(pixels).save(stream, format=form, **options)
        found.append(stream.tell())
    return torch.tensor(found, dtype=torch.float64)


def png(images: Tensor) -> Tensor:
    """Mean bits per dim of the images as PNG files."""
    return sizes(images, "PNG").mean() * 8 / images[0].numel()


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation; equal values share their mean rank."""
    ranks = []
    for values in (a, b):
        _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).double()
        ranks.append((ends - (counts - 1) / 2)[places])
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; a column without a value in any row is left out."""
    kept = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    lines = ["| " + " | ".join(columns[place] for place in kept) + " |", "|" + "---|" * len(kept)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row[place]) for place in kept) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Tensor | float):
        return f"{float(value):,.3f}"
    return "-" if value is None else str(value)


def draw(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """A row of panels for each flow: the order, the degradations, the files' sizes, the second flow's ranks."""
    from matplotlib.figure import Figure

    names = list(figures)
    figure = Figure(figsize=(17, 4.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 4, squeeze=False)
    for name, row in zip(names, axes, strict=True):
        found = figures[name]
        means: dict[str, float] = found["order"]
        row[0].barh(list(means)[::-1], list(means.values())[::-1], color="#4477aa")
        row[0].set_xlabel("bits per dim")
        row[0].set_title(f"{name}: kinds of images")
        for (label, (shown, bits, _)), colour in zip(found["curves"].items(), COLOURS, strict=False):
            row[1].plot(range(len(bits)), bits, marker="o", label=f"{label} {shown[1]} … {shown[-1]}", color=colour)
        row[1].set_xlabel("stronger degradation")
        row[1].set_ylabel("bits per dim")
        row[1].set_ylim(bottom=0)
        row[1].legend(fontsize=7, loc="lower left")
        row[1].set_title(f"{name}: degraded images")
        for (label, (bits, size)), colour in zip(found["scatter"].items(), COLOURS, strict=False):
            row[2].scatter(size, bits, s=5, alpha=0.6, label=label, color=colour)
        row[2].set_xlabel("PNG bits per dim")
        row[2].set_ylabel("bits per dim")
        row[2].legend(fontsize=8)
        row[2].set_title(f"{name}: real images")
        if "sets" in found:
            mine, theirs = found["sets"]
            row[3].scatter(mine, theirs, color="#aa3377", s=25)
            row[3].set_xlabel("bits per dim, shipped flow")
            row[3].set_ylabel("bits per dim, second flow")
            row[3].set_title(f"{name}: sets of ten images")
        else:
            row[3].axis("off")
    figure.savefig(path, dpi=80, metadata={"Software": None})


COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
