"""Opens what the name of a source stands for: a named dataset, Parquet files or a folder of images."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from condense.data import readers
from condense.data.config import DataConfig
from condense.data.image_folders import split_folders
from condense.data.npz import npz_splits
from condense.data.parquet_files import ParquetFiles, split_files, test_files
from condense.data.parquet_split import ParquetSplit
from condense.data.readers import FolderSplit, StoredSplit, TorchvisionSplit
from condense.errors import SourceError

FORMS = "digits, " + ", ".join(readers.TORCHVISION_SETS) + ", parquet:PATH-OR-URI, folder:PATH, npz:PATH"


@dataclass(frozen=True)
class Stored:
    """What a spec names; none of its images are read yet.

    Attributes:
        name: short name of the dataset.
        train: the stored train split.
        test: the stored test split; None where there is none, and one is carved from train.
        validation: the stored validation split; None where there is none, and one is carved from train.
        left_out: in words, what is there and not read.
    """

    name: str
    train: StoredSplit
    test: StoredSplit | None = None
    validation: StoredSplit | None = None
    left_out: tuple[str, ...] = ()


def open_stored(spec: str, data: DataConfig) -> Stored:
    """Returns the splits that a spec names; raises SourceError."""
    form, _, rest = spec.partition(":")
    if form in SOURCES and rest:
        return SOURCES[form](rest, data)
    if spec.lower() == "digits":
        return Stored("digits", readers.digits())
    if (name := readers.torchvision_name(spec)) is not None:
        train, test = (TorchvisionSplit(name, train, data.root, data.download) for train in (True, False))
        return Stored(name, train, test)
    near = readers.nearest_names(spec)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise SourceError(f"unknown dataset {spec!r}", f"{hint}Known forms: {FORMS}")


def open_test(spec: str, data: DataConfig, class_names: tuple[str, ...]) -> StoredSplit:
    """Returns the test split that `data.test_source` names; raises SourceError."""
    form, _, rest = spec.partition(":")
    if form == "parquet" and rest:
        return _parquet_split(test_files(rest), data, class_names)
    if form == "folder" and rest:
        folders = split_folders(Path(rest).expanduser(), wanted="test")
        return FolderSplit(folders.test or folders.train, class_names)
    raise SourceError(f"data.test_source {spec!r} is not parquet:... or folder:...", "give one of these two forms")


def _open_parquet(uri: str, data: DataConfig) -> Stored:
    files = split_files(uri, config=data.config, patterns=data.split_files)
    train = _parquet_split(files.train, data)
    name = re.sub(
        r"[-_.]?train(ing)?(-\d+-of-\d+)?$",
        "",
        Path(uri.partition("?")[0]).name.removesuffix(".parquet"),
        flags=re.IGNORECASE,
    )

    def held_out(files: ParquetFiles | None) -> ParquetSplit | None:
        # Its footer is read here, so that a damaged file is known before the run and not after it.
        return None if files is None else _parquet_split(files, data, train.class_names)

    test, left_out = files.test, files.left_out
    if files.test is not None and data.test_source is not None:
        test, left_out = None, (*left_out, f"not read beside data.test_source: {files.test.listed}")
    return Stored(name or "parquet", train, held_out(test), held_out(files.validation), left_out)


def _parquet_split(files: ParquetFiles, data: DataConfig, class_names: tuple[str, ...] | None = None) -> ParquetSplit:
    return ParquetSplit(
        files,
        image_column=data.image_column,
        label_column=data.label_column,
        known_classes=class_names,
        allow_gaps=data.drop_empty_classes,
    )


def _open_folder(rest: str, data: DataConfig) -> Stored:
    path = Path(rest).expanduser()
    folders = split_folders(path, config=data.config, patterns=data.split_files)
    train = FolderSplit(folders.train)
    left_out = [*folders.left_out, *train.left_out]
    held_out: dict[str, FolderSplit] = {}
    for split, folder in (("test", folders.test), ("validation", folders.validation)):
        if folder is not None and split == "test" and data.test_source is not None:
            left_out.append(f"{folder.name}: not read beside data.test_source")
        elif folder is not None:
            held_out[split] = FolderSplit(folder, train.class_names)
            left_out += (f"{folder.name}: {said}" for said in held_out[split].left_out)
    return Stored(path.name, train, **held_out, left_out=tuple(left_out))


def _open_npz(rest: str, data: DataConfig) -> Stored:
    path = Path(rest).expanduser()
    splits = npz_splits(path)
    left_out: tuple[str, ...] = ()
    if data.test_source is not None and splits.pop("test", None) is not None:
        left_out = ("test_images: not read beside data.test_source",)
    return Stored(path.stem, splits["train"], splits.get("test"), splits.get("val"), left_out)


# The forms FORM:REST, each with what opens REST. A new kind of source is a line here (docs/extending.md).
SOURCES: dict[str, Callable[[str, DataConfig], Stored]] = {
    "parquet": _open_parquet,
    "folder": _open_folder,
    "npz": _open_npz,
}
