"""Opens a dataset with three splits: train, validation and test.

The validation and the test split are the stored ones. Where there is no validation split, it is carved from train,
class by class, with the run's seed. Where there is no test split, it is carved from train first, with a seed of its
own. So it is the same for every seed of a run, and nothing that was chosen over several seeds has seen it. It is read
when `load("test")` asks for it, not earlier.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense.data.config import DataConfig
from condense.data.decoding import Frame, framed_shape, stack
from condense.data.forms import Stored, open_stored, open_test
from condense.data.parquet_split import ParquetSplit
from condense.data.readers import StoredSplit
from condense.data.split_names import Split, shown
from condense.data.splits import ChosenClasses, carve, check_splittable
from condense.seeding import generator

log = logging.getLogger(__name__)

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
        """Returns plain values that say where the data came from and how it was split and framed; `splits` are lines
        to show.
        """


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
    return _SplitSource(spec, _without_empty_classes(stored) if data.drop_empty_classes else stored, data, seed)


def _without_empty_classes(stored: Stored) -> Stored:
    counts = np.bincount(stored.train.labels, minlength=len(stored.train.class_names))
    if counts.all():
        return stored

    def chosen(split: StoredSplit) -> ChosenClasses:
        return ChosenClasses(split, tuple(np.flatnonzero(counts).tolist()))

    dropped = [name for name, count in zip(stored.train.class_names, counts.tolist(), strict=True) if not count]
    return replace(
        stored,
        train=chosen(stored.train),
        test=stored.test and chosen(stored.test),
        validation=stored.validation and chosen(stored.validation),
        left_out=(*stored.left_out, f"classes without a train image: {shown(dropped)}"),
    )


class _SplitSource:
    """The stored splits, and those that are missing carved from train."""

    def __init__(self, spec: str, stored: Stored, data: DataConfig, seed: int) -> None:
        self.name = stored.name
        self._spec, self._seed, self._data = spec, seed, data
        self._frame = Frame(data.image_size, data.fit)
        self._train, self._test, self._validation = stored.train, stored.test, stored.validation
        self.class_names = self._train.class_names
        where, first = next(iter(self._train.pictures(np.zeros(1, dtype=np.int64))))
        self.shape = framed_shape(first, self._frame, where)
        labels = self._train.labels
        classes, kept = len(self.class_names), np.arange(len(labels))
        carved = [split for split in ("validation", "test") if getattr(stored, split) is None]
        check_splittable(labels, self.class_names, ("train", *carved))
        self._test_rows = self._validation_rows = kept[:0]
        if self._test is None:
            fraction = TEST_FRACTION.get(spec.lower(), 0.1)
            test = carve(labels, fraction, classes=classes, seed=TEST_SEED, purpose="test-split")
            self._test_rows, kept = kept[test], kept[~test]
            self._test_from = f"{fraction:.0%} of {self._train.where}, carved with seed {TEST_SEED}"
        else:
            self._test_from = self._test.where
        if self._validation is None:
            fraction = data.validation_fraction
            held = carve(labels[kept], fraction, classes=classes, seed=seed, purpose="validation-split")
            self._validation_rows, kept = kept[held], kept[~held]
            self._validation_from = f"{fraction:.0%} of train, carved with seed {seed}"
        else:
            self._validation_from = self._validation.where
        self._train_rows = kept
        self._left_out = stored.left_out
        log.info("real images of %s\n  %s", spec, "\n  ".join(self._told()))
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
        stored = {"train": None, "validation": self._validation, "test": self._test}[split]
        if stored is not None:
            return stored, np.arange(len(stored.labels))
        return self._train, {"train": self._train_rows, "validation": self._validation_rows, "test": self._test_rows}[
            split
        ]

    def _told(self) -> list[str]:
        """Says which files are which split, how many images each has, and what is not read."""
        carved = {"validation": self._validation_rows, "test": self._test_rows}
        lines = [f"train: {len(self._train_rows)} images, {_files_of(self._train)}"]
        for split, stored, place in (
            ("validation", self._validation, self._validation_from),
            ("test", self._test, self._test_from),
        ):
            count = len(carved[split]) if stored is None else len(stored) if isinstance(stored, Sized) else None
            counted = "" if count is None else f"{count} images, "
            lines.append(f"{split}: {counted}{place if stored is None else _files_of(stored)}")
        return [*lines, *(f"not read: {said}" for said in self._left_out)]

    def description(self) -> dict[str, Any]:
        return {
            "source": self._spec,
            "name": self.name,
            "train": self._train.where,
            "test": self._test_from,
            "validation": self._validation_from,
            "splits": self._told(),
            "class_names": list(self.class_names),
            "train_class_counts": list(self.class_counts),
            "shape": list(self.shape),
            "image_size": self._data.image_size,
            "fit": self._data.fit,
        }


def _files_of(split: StoredSplit) -> str:
    split = split.split if isinstance(split, ChosenClasses) else split
    if isinstance(split, ParquetSplit) and len(split.files.paths) > 1:
        return f"{split.where} ({split.files.listed})"
    return split.where
