"""Reads a NumPy archive with MedMNIST's keys: train_images, train_labels, and the same for val and test."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from condense.data.labels import check_labels
from condense.data.readers import ArraySplit
from condense.errors import SourceError

EXPECTED = "expected train_images, train_labels and the same for val and test, as MedMNIST writes them"


def npz_splits(path: Path) -> dict[str, ArraySplit]:
    """Returns the splits of an archive by their keys: train, and val and test where it has them.

    Images are uint8 (N, H, W) or (N, H, W, C), C one or three; labels are integers (N,) or (N, 1).

    Raises:
        SourceError: no such archive, pickled content, missing keys, another shape or type, a label that train has not.
    """
    splits: dict[str, ArraySplit] = {}
    names: tuple[str, ...] = ()
    try:
        with np.load(path, allow_pickle=False) as archive:
            for split in ("train", "val", "test"):
                if split == "train" or f"{split}_images" in archive:
                    splits[split] = _split(archive, split, f"{path}, {split}_images", names)
                    names = splits["train"].class_names
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not a readable NumPy archive: {error}", EXPECTED) from None
    return splits


def _split(archive: Any, split: str, where: str, names: tuple[str, ...]) -> ArraySplit:
    for key in (f"{split}_images", f"{split}_labels"):
        if key not in archive:
            raise SourceError(f"{where}: the archive has no {key}, but {', '.join(archive)}", EXPECTED)
    images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
    pictures = images[..., None] if images.ndim == 3 else images
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3) or pictures.dtype != np.uint8:
        raise SourceError(
            f"{where}: images are {images.dtype} {images.shape}", "expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != pictures.shape[:1] or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise SourceError(
            f"{where}: {len(pictures)} images, but labels are {labels.dtype} {labels.shape}",
            "expected one integer for each image",
        )
    labels = labels.astype(np.int64)
    names = names or tuple(str(label) for label in range(max(0, int(labels.max())) + 1))
    check_labels(labels, names, lambda row: f"{where}, row {row}")
    return ArraySplit(where, names, labels, pictures)
