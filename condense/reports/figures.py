"""Draws the figures beside a dataset's card: all of its images, and its bits by class."""

from __future__ import annotations

import io

import torch
from PIL import Image

from condense.errors import DatasetError
from condense.image_grid import image_grid
from condense.synthetic.dataset import CondensedDataset

NAMED_BARS = 30  # more class names than this do not fit under a bar chart


def preview(dataset: CondensedDataset) -> bytes:
    """Returns a PNG of all images, sorted by class."""
    order = dataset.labels.argsort(stable=True)
    per_class = max(1, len(dataset.labels) // max(1, len(set(dataset.labels.tolist()))))
    return _png(image_grid(dataset.images[order], images_per_class=per_class))


def bits_figure(dataset: CondensedDataset) -> bytes:
    """Returns a PNG of mean bits per dim by class, with the real images' mean where it is known.

    Raises:
        DatasetError: no flow measured the dataset's bits.
    """
    bits = dataset.bits_per_dim
    if bits is None:
        raise DatasetError("no flow measured the bits of this dataset", "condense bits measures them")
    from matplotlib.figure import Figure  # without pyplot there is no global state and no window

    classes = [index for index in range(len(dataset.class_names)) if bool((dataset.labels == index).any())]
    heights = [float(bits[dataset.labels == index].mean()) for index in classes]
    figure = Figure(figsize=(min(4 + 0.35 * len(classes), 14), 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(classes)), heights, color="#4477aa")
    before = (dataset.provenance.get("bits") or {}).get("per_dim_before")
    if before is not None:
        axes.axhline(before, color="#cc6677", linestyle="--", label="real images")
        axes.legend(loc="best")
    if len(classes) <= NAMED_BARS:
        names = [dataset.class_names[index] for index in classes]
        crowded = max(map(len, names)) * len(names) > 60
        axes.set_xticks(range(len(classes)), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlabel("class")
    axes.set_ylabel("bits per dim")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def _png(grid: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
