"""Chooses which rows of a stored split are used: those that become validation and test, and those of some classes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from condense.data.decoding import Picture
from condense.data.labels import Labels
from condense.data.readers import Rows, StoredSplit
from condense.errors import SourceError
from condense.seeding import generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenClasses:
    """The rows of a split that are of some of its classes, whose labels count these.

    Attributes:
        split: the whole split.
        chosen: labels of the classes, ascending.
    """

    split: StoredSplit
    chosen: tuple[int, ...]

    @property
    def where(self) -> str:
        return self.split.where

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.split.class_names[label] for label in self.chosen)

    @functools.cached_property
    def labels(self) -> Labels:
        return np.searchsorted(self.chosen, self.split.labels[self._rows]).astype(np.int64)

    def pictures(self, rows: Rows) -> Iterator[tuple[str, Picture]]:
        return self.split.pictures(self._rows[rows])

    @functools.cached_property
    def _rows(self) -> Rows:
        rows = np.flatnonzero(np.isin(self.split.labels, self.chosen))
        if missing := len(self.split.labels) - len(rows):
            log.warning("%s: %d images of classes without a train image are not used", self.where, missing)
        return rows


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
            empty = "set data.drop_empty_classes=true, which leaves this class out, or add images of it"
            raise SourceError(
                f"class {name!r} has {count} image{'s' * (count != 1)}, but {' and '.join(splits)} need one each",
                "add images of this class, or take its rows out of the data" if count else empty,
            )


def check_class_sizes(class_counts: Sequence[int], images_per_class: int, class_names: Sequence[str]) -> None:
    """Raises SourceError if there is one class alone, or naming the first that has fewer train images than
    `images_per_class`.
    """
    if len(class_counts) == 1:
        raise SourceError(
            f"all images are of one class, {class_names[0]!r}: a network has nothing to tell apart",
            "give data of two or more classes",
        )
    for name, count in zip(class_names, class_counts, strict=True):
        if count < images_per_class:
            raise SourceError(
                f"class {name!r} has {count} train images, fewer than images_per_class={images_per_class}",
                "lower images_per_class, or data.validation_fraction",
            )
