"""Opens a dataset with three splits: train, validation and test.

The validation split is always carved from train, class by class, with the run's seed. The test split is the stored one.
Where there is none, it is carved from train first, with a seed of its own. So it is the same for every seed of a run,
and nothing that was chosen over several seeds has seen it. It is read when `load("test")` asks for it, not earlier.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense.data.config import DataConfig
from condense.data.decoding import Frame, framed_shape, stack
from condense.data.forms import Stored, open_stored, open_test
from condense.data.readers import StoredSplit
from condense.data.splits import carve, check_splittable
from condense.seeding import generator

log = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]

TEST_SEED = 0
TEST_FRACTION = {"digits": 0.2}  # its 10 % would be 18 images a class; larger sets have enough


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 (N, C, H, W); labels: int64 (N,); class_names: one name per label value."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


class DataSource(Protocol):
    """A dataset with three splits; the same arguments always give the same images in the same order.

    name: short name of the dataset. class_names: one per label value. shape: (C, H, W) of every image.
    class_counts: images per class of the train split, validation taken out.
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    class_counts: tuple[int, ...]

    @property
    def channels(self) -> int:
        """One (grey) or three (RGB)."""

    def load(self, split: Split, classes: range | None = None, *, limit: int | None = None) -> LabelledImages:
        """Loads the images of a split in stored order; with `classes`, only theirs (labels keep their values).

        With `limit`, those among at most so many of the whole split, drawn with the source's seed. What is not asked
        for is not decoded, and of a Parquet file no row group is read that holds none of it.

        Raises:
            SourceError: naming file and row.
        """

    def load_classes(self, classes: range) -> list[Tensor]:
        """Loads the train images of each of these classes, uint8 (n_c, C, H, W) each, in stored order; raises as
        `load`.

        Nothing else is held meanwhile: each image is decoded into its place.
        """

    def count(self, split: Split) -> int:
        """Returns how many images a split has."""

    def pieces(self, split: Split, size: int) -> Iterator[LabelledImages]:
        """Yields the images of a split in stored order, at most `size` at a time; raises as `load`."""

    def description(self) -> dict[str, Any]:
        """Returns plain values that say where the data came from and how it was split and framed."""


def open_source(spec: str, data: DataConfig, *, seed: int) -> DataSource:
    """Opens the dataset that `spec` names. Labels and one image of train are read, of the test split no row.

    Args:
        spec: digits; a torchvision dataset (mnist, cifar10 ...); parquet:PATH or parquet:URI; folder:PATH.
        data: size, fit, splits and columns.
        seed: draws the validation split.

    Raises:
        SourceError: an unknown name, missing files, bad labels, a class too small to split.
    """
    stored = open_stored(spec, data)
    if data.test_source is not None:
        stored = replace(stored, test=open_test(data.test_source, data, stored.train.class_names))
    return _SplitSource(spec, stored, data, seed)


class _SplitSource:
    """A stored train split with validation, and where needed test, carved from it."""

    def __init__(self, spec: str, stored: Stored, data: DataConfig, seed: int) -> None:
        self.name = stored.name
        self._spec, self._seed, self._data = spec, seed, data
        self._frame = Frame(data.image_size, data.fit)
        self._train, self._test = stored.train, stored.test
        self.class_names = self._train.class_names
        where, first = next(iter(self._train.pictures(np.zeros(1, dtype=np.int64))))
        self.shape = framed_shape(first, self._frame, where)
        labels = self._train.labels
        classes, kept = len(self.class_names), np.arange(len(labels))
        splits = ("train", "validation", *(("test",) if self._test is None else ()))
        check_splittable(labels, self.class_names, splits)
        self._test_rows = kept[:0]
        if self._test is None:
            fraction = TEST_FRACTION.get(spec.lower(), 0.1)
            test = carve(labels, fraction, classes=classes, seed=TEST_SEED, purpose="test-split")
            self._test_rows, kept = kept[test], kept[~test]
            self._test_from = f"{fraction:.0%} of {self._train.where}, carved with seed {TEST_SEED}"
        else:
            self._test_from = self._test.where
        log.info("%s: the test split is %s", spec, self._test_from)
        fraction = data.validation_fraction
        held = carve(labels[kept], fraction, classes=classes, seed=seed, purpose="validation-split")
        self._validation_rows, self._train_rows = kept[held], kept[~held]
        counts = np.bincount(labels[self._train_rows], minlength=classes)
        self.class_counts = tuple(int(count) for count in counts)

    @property
    def channels(self) -> int:
        return self.shape[0]

    def load(self, split: Split, classes: range | None = None, *, limit: int | None = None) -> LabelledImages:
        stored, rows = self._rows_of(split)
        labels = stored.labels[rows]
        if limit is not None and limit < len(rows):
            order = torch.randperm(len(rows), generator=generator(self._seed, "limit")).numpy()
            drawn = np.sort(order[:limit])
            rows, labels = rows[drawn], labels[drawn]
        if classes is not None:
            wanted = np.isin(labels, np.asarray(classes))
            rows, labels = rows[wanted], labels[wanted]
        images = stack(stored.pictures(rows), len(rows), self.shape, self._frame)
        return LabelledImages(images, torch.from_numpy(labels.copy()), self.class_names)

    def load_classes(self, classes: range) -> list[Tensor]:
        labels = self._train.labels[self._train_rows]
        own = np.isin(labels, np.asarray(classes))
        rows, labels = self._train_rows[own], labels[own]
        places = np.empty_like(rows)
        places[np.argsort(labels, kind="stable")] = np.arange(len(rows))
        images = stack(self._train.pictures(rows), len(rows), self.shape, self._frame, places)
        return list(images.split([self.class_counts[label] for label in classes]))

    def count(self, split: Split) -> int:
        return len(self._rows_of(split)[1])

    def pieces(self, split: Split, size: int) -> Iterator[LabelledImages]:
        stored, rows = self._rows_of(split)
        pictures = iter(stored.pictures(rows))
        for start in range(0, len(rows), size):
            labels = stored.labels[rows[start : start + size]]
            images = stack(islice(pictures, len(labels)), len(labels), self.shape, self._frame)
            yield LabelledImages(images, torch.from_numpy(labels), self.class_names)

    def _rows_of(self, split: Split) -> tuple[StoredSplit, NDArray[np.int64]]:
        if split == "test" and self._test is not None:
            return self._test, np.arange(len(self._test.labels))
        return self._train, {"train": self._train_rows, "validation": self._validation_rows, "test": self._test_rows}[
            split
        ]

    def description(self) -> dict[str, Any]:
        return {
            "source": self._spec,
            "name": self.name,
            "train": self._train.where,
            "test": self._test_from,
            "validation": f"{self._data.validation_fraction:.0%} of train, carved with seed {self._seed}",
            "class_names": list(self.class_names),
            "train_class_counts": list(self.class_counts),
            "shape": list(self.shape),
            "image_size": self._data.image_size,
            "fit": self._data.fit,
        }
