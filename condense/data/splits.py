"""Chooses which rows of a stored split become validation and test, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from condense.data.readers import Labels
from condense.errors import SourceError
from condense.seeding import generator


def carve(labels: Labels, fraction: float, *, classes: int, seed: int, purpose: str) -> NDArray[np.bool_]:
    """Chooses the rows that a split takes: round(fraction * n) of the n rows of each class, at least one, never all.

    A class's draw depends on its own rows alone, not on the other classes.
    """
    taken = np.zeros(len(labels), dtype=np.bool_)
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        order = torch.randperm(len(rows), generator=generator(seed, purpose, index=label)).numpy()
        taken[rows[order[:count]]] = True
    return taken


def check_splittable(labels: Labels, class_names: Sequence[str], splits: Sequence[str]) -> None:
    """Raises SourceError naming the first class that has fewer rows than there are splits to take one each."""
    counts = np.bincount(labels, minlength=len(class_names))
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count < len(splits):
            raise SourceError(
                f"class {name!r} has {count} image{'s' * (count != 1)}, but {' and '.join(splits)} need one each",
                "add images of this class, or leave the class out",
            )


def check_class_sizes(class_counts: Sequence[int], images_per_class: int, class_names: Sequence[str]) -> None:
    """Raises SourceError naming the first class that has fewer train images than `images_per_class`."""
    for name, count in zip(class_names, class_counts, strict=True):
        if count < images_per_class:
            raise SourceError(
                f"class {name!r} has {count} train images, fewer than images_per_class={images_per_class}",
                "lower images_per_class, or data.validation_fraction",
            )
