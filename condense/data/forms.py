"""Opens what the name of a source stands for: a named dataset, Parquet files or a folder of images."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from condense.data import readers
from condense.data.config import DataConfig
from condense.data.parquet_files import ParquetFiles, test_files, train_and_test_files
from condense.data.parquet_split import ParquetSplit
from condense.data.readers import FolderSplit, StoredSplit, TorchvisionSplit
from condense.errors import SourceError

log = logging.getLogger(__name__)


FORMS = "digits, " + ", ".join(readers.TORCHVISION_SETS) + ", parquet:PATH-OR-URI, folder:PATH"


@dataclass(frozen=True)
class Stored:
    """What a spec names; none of its images are read yet.

    Attributes:
        name: short name of the dataset.
        train: the stored train split.
        test: the stored test split; None where there is none, and one is carved from train.
    """

    name: str
    train: StoredSplit
    test: StoredSplit | None = None


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
        path = Path(rest).expanduser()
        return FolderSplit(path / "test" if (path / "test").is_dir() else path, class_names)
    raise SourceError(f"data.test_source {spec!r} is not parquet:... or folder:...", "give one of these two forms")


def _open_parquet(uri: str, data: DataConfig) -> Stored:
    train, test = train_and_test_files(uri)
    split = _parquet_split(train, data)
    name = (
        re.sub(r"[-_.]?train(-\d+-of-\d+)?$", "", Path(uri.partition("?")[0]).name.removesuffix(".parquet"))
        or "parquet"
    )
    if test is None or data.test_source is not None:
        return Stored(name, split)
    # Its footer is read here, so that a damaged file is known before the run and not after it.
    return Stored(name, split, _parquet_split(test, data, split.class_names))


def _parquet_split(files: ParquetFiles, data: DataConfig, class_names: tuple[str, ...] | None = None) -> ParquetSplit:
    return ParquetSplit(
        files, image_column=data.image_column, label_column=data.label_column, known_classes=class_names
    )


def _open_folder(rest: str, data: DataConfig) -> Stored:
    path = Path(rest).expanduser()
    if not (path / "train").is_dir():
        return Stored(path.name, FolderSplit(path))
    train = FolderSplit(path / "train")
    if data.test_source is not None or not (path / "test").is_dir():
        return Stored(path.name, train)
    return Stored(path.name, train, FolderSplit(path / "test", train.class_names))


# The forms FORM:REST, each with what opens REST. A new kind of source is a line here (docs/extending.md).
SOURCES: dict[str, Callable[[str, DataConfig], Stored]] = {"parquet": _open_parquet, "folder": _open_folder}
