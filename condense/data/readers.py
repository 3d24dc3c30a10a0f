"""Reads stored datasets: from memory, from folders, from torchvision's files.

Each gives the same three things: class names, labels, and the pictures of given rows. Validation splits and seeds are
the business of sources.py.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from condense.data.decoding import MAX_BYTES, Picture, decode
from condense.data.image_folders import SUFFIXES, folders_in, is_hidden, is_image
from condense.data.labels import Labels, check_labels
from condense.data.split_names import left_out
from condense.errors import SourceError

Rows = NDArray[np.int64]


class StoredSplit(Protocol):
    """One stored split: rows in a fixed order."""

    @property
    def where(self) -> str:
        """File or folder, for messages."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label value."""

    @property
    def labels(self) -> Labels:
        """int64 (rows,), each in [0, len(class_names))."""

    def pictures(self, rows: Rows) -> Iterator[tuple[str, Picture]]:
        """Yields (file and row for messages, picture) of ascending rows, holding no more pictures than needed."""


@dataclass(frozen=True)
class ArraySplit:
    """A split held in memory: stored (rows, H, W, C) uint8."""

    where: str
    class_names: tuple[str, ...]
    labels: Labels
    stored: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self, rows: Rows) -> Iterator[tuple[str, Picture]]:
        return ((f"{self.where}, row {row}", self.stored[row]) for row in rows.tolist())


@dataclass(frozen=True)
class FolderSplit:
    """A folder with one folder of images per class.

    Classes are the sorted folder names, images the sorted files of each class, those of folders in it too. Hidden
    files and files of other kinds are passed over; `left_out` counts them in words.
    """

    path: Path
    known_classes: tuple[str, ...] | None = None  # those of train, when this is its test split
    files: tuple[Path, ...] = field(init=False)
    labels: Labels = field(init=False)
    class_names: tuple[str, ...] = field(init=False)
    left_out: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise SourceError(f"folder {self.path} does not exist", "give a folder that holds one folder per class")
        found = [folder.name for folder in folders_in(self.path)]
        if not found:
            raise SourceError(
                f"folder {self.path} holds no folders", "put the images of each class into its own folder"
            )
        names = self.known_classes or tuple(found)
        if unknown := sorted(set(found) - set(names)):
            raise SourceError(
                f"folder {self.path / unknown[0]}: class {unknown[0]!r} is not a class of the train split"
            )
        files: list[Path] = []
        labels: list[int] = []
        outside = [p for p in self.path.iterdir() if p.is_file()]
        passed = [p for p in outside if not is_image(p)]
        for name in found:
            inside = _files_below(self.path / name)
            images = sorted(p for p in inside if is_image(p))
            passed += (p for p in inside if not is_image(p))
            if not images:
                raise SourceError(
                    f"folder {self.path / name} holds no images", f"expected {', '.join(sorted(SUFFIXES))}"
                )
            files += images
            labels += [names.index(name)] * len(images)
        object.__setattr__(self, "files", tuple(files))
        object.__setattr__(self, "labels", np.array(labels, dtype=np.int64))
        object.__setattr__(self, "class_names", names)
        said = left_out(sum(map(is_hidden, passed)), (p.name for p in passed if not is_hidden(p)))
        if beside := len(list(filter(is_image, outside))):
            said.append(f"{beside} image{'s' * (beside > 1)} outside of the folders of classes")
        object.__setattr__(self, "left_out", tuple(said))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def where(self) -> str:
        return str(self.path)

    def pictures(self, rows: Rows) -> Iterator[tuple[str, Picture]]:
        return ((str(self.files[row]), _decode_file(self.files[row])) for row in rows.tolist())


def _files_below(folder: Path) -> list[Path]:
    """Returns the files in a folder and in the folders in it that are not hidden."""
    files: list[Path] = []
    for at, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not is_hidden(Path(name))]
        files += (Path(at) / name for name in names)
    return files


def _decode_file(path: Path) -> Picture:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SourceError(f"{path}: an image of {size} bytes; at most {MAX_BYTES} are read")
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None


@functools.cache
def digits() -> ArraySplit:
    """Returns scikit-learn's 1797 handwritten digits, 8x8 grey, their levels 0..16 scaled to 0..255 (Alpaydin, Kaynak
    1998).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    names = tuple(str(digit) for digit in range(10))
    return ArraySplit("digits", names, bunch.target.astype(np.int64), pictures)


@dataclass(frozen=True)
class TorchvisionSet:
    """Says how torchvision calls one of its datasets, and which files it wants under its root."""

    cls: str
    files: tuple[str, ...]
    train: dict[str, Any]
    test: dict[str, Any]
    where_from: str


def _idx(folder: str, prefixes: tuple[str, str], origin: str, **more: Any) -> TorchvisionSet:
    files = tuple(f"{folder}/raw/{p}-{kind}-ubyte" for p in prefixes for kind in ("images-idx3", "labels-idx1"))
    return TorchvisionSet(folder, files, {"train": True, **more}, {"train": False, **more}, origin)


def _batches(cls: str, folder: str, names: tuple[str, ...]) -> TorchvisionSet:
    files = tuple(f"{folder}/{name}" for name in names)
    return TorchvisionSet(cls, files, {"train": True}, {"train": False}, "https://www.cs.toronto.edu/~kriz/cifar.html")


_PLAIN = ("train", "t10k")
_CIFAR10 = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
_STL10 = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")
TORCHVISION_SETS = {
    "mnist": _idx("MNIST", _PLAIN, "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": _idx("FashionMNIST", _PLAIN, "https://github.com/zalandoresearch/fashion-mnist"),
    "kmnist": _idx("KMNIST", _PLAIN, "http://codh.rois.ac.jp/kmnist/"),
    "emnist-balanced": _idx(
        "EMNIST",
        ("emnist-balanced-train", "emnist-balanced-test"),
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        split="balanced",
    ),
    "svhn": TorchvisionSet(
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        {"split": "train"},
        {"split": "test"},
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "cifar10": _batches("CIFAR10", "cifar-10-batches-py", _CIFAR10),
    "cifar100": _batches("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
    "stl10": TorchvisionSet(
        "STL10",
        tuple(f"stl10_binary/{name}" for name in _STL10),
        {"split": "train"},
        {"split": "test"},
        "https://cs.stanford.edu/~acoates/stl10/",
    ),
}


def torchvision_name(spec: str) -> str | None:
    """Returns the key of TORCHVISION_SETS that `spec` means, in any case, with or without hyphens; None if there is
    none.
    """
    plain = {key.replace("-", ""): key for key in TORCHVISION_SETS}
    return plain.get(spec.lower().replace("-", "").replace("_", ""))


def nearest_names(spec: str) -> list[str]:
    """Returns known dataset names that resemble `spec`."""
    return difflib.get_close_matches(spec.lower(), ["digits", *TORCHVISION_SETS], n=3)


@dataclass(frozen=True)
class TorchvisionSplit:
    """One split of a torchvision dataset, from the files under `root`, which are read when first needed.

    torchvision unpickles CIFAR's files only after their MD5 sums agree with the published ones.

    Raises:
        SourceError: naming the files that are missing or damaged and where each belongs.
    """

    name: str  # a key of TORCHVISION_SETS
    train: bool
    root: Path
    download: bool = False

    def __post_init__(self) -> None:
        files = TORCHVISION_SETS[self.name].files
        missing = [file for file in files if not (self.root / file).is_file()]
        if missing and not self.download:
            more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
            raise SourceError(
                f"{self.name}: {self.root} holds no {missing[0]}{more}", f"{self._remedy()}, or set data.download=true"
            )

    @property
    def where(self) -> str:
        return f"{self.name} {'train' if self.train else 'test'}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._read.class_names

    @property
    def labels(self) -> Labels:
        return self._read.labels

    def pictures(self, rows: Rows) -> Iterator[tuple[str, Picture]]:
        return self._read.pictures(rows)

    def _remedy(self) -> str:
        described = TORCHVISION_SETS[self.name]
        return f"put {', '.join(described.files)} from {described.where_from} into {self.root}"

    @functools.cached_property
    def _read(self) -> ArraySplit:
        described = TORCHVISION_SETS[self.name]
        made = getattr(importlib.import_module("torchvision.datasets"), described.cls)
        try:
            arguments = described.train if self.train else described.test
            dataset = made(root=str(self.root), download=self.download, **arguments)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
            cause = "there may be no network: " if self.download else "a file is damaged: "
            reason = str(error).splitlines()[0] if str(error) else "not readable"
            raise SourceError(f"{self.name}: {type(error).__name__}: {reason}", cause + self._remedy()) from None
        return _from_torchvision(self.name, dataset, self.where)


def _from_torchvision(name: str, dataset: Any, where: str) -> ArraySplit:
    pictures = np.asarray(dataset.data)
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets, dtype=np.int64)
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if name == "emnist-balanced":
        pictures = pictures.transpose(0, 2, 1, 3)  # its files hold every letter transposed
    if name in ("svhn", "stl10"):
        pictures = pictures.transpose(0, 2, 3, 1)
    names = tuple(getattr(dataset, "classes", None) or (str(digit) for digit in range(10)))
    if len(pictures) == 0 or len(pictures) != len(labels):
        raise SourceError(f"{where}: {len(pictures)} images and {len(labels)} labels")
    check_labels(labels, names, lambda row: f"{where}, row {row}")
    return ArraySplit(where, names, labels, pictures)
