"""Finds the Parquet files that a path or URI means, and says which are train and which are test.

The files are on a local disk or on any filesystem that pyarrow knows.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from condense.errors import SourceError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParquetFiles:
    """Files of one split on one filesystem, in name order."""

    filesystem: pafs.FileSystem
    paths: tuple[str, ...]

    def shown(self, path: str) -> str:
        """Returns a path as a person writes it: its filesystem's type_name before it, unless it is local."""
        kind = self.filesystem.type_name
        return path if kind == "local" else f"{kind}://{path}"


def train_and_test_files(uri: str) -> tuple[ParquetFiles, ParquetFiles | None]:
    """Finds the train files at a path or URI, and the test files beside them if there are any.

    A folder's files belong to test, validation or train by the word in their names; where no name says train, all
    that are not test or validation do. Beside a single file, the test file is the one with "test" for "train" in its
    name.

    Raises:
        SourceError: nothing there, or it cannot be reached.
    """
    filesystem, path, found = _list(uri)
    if found is None:
        folder, separator, name = path.rpartition("/")
        beside = folder + separator + name.replace("train", "test")
        paired = "train" in name and _is_file(filesystem, beside)
        return ParquetFiles(filesystem, (path,)), ParquetFiles(filesystem, (beside,)) if paired else None
    train, test, unused = _by_split(path, found)
    if not train:
        raise SourceError(f"folder {uri} holds no Parquet file to train on", "expected names such as train-0.parquet")
    if unused:
        log.info("%s: not read, validation is carved from train: %s", uri, ", ".join(unused))
    return ParquetFiles(filesystem, train), ParquetFiles(filesystem, test) if test else None


def test_files(uri: str) -> ParquetFiles:
    """Finds the test files at a path or URI.

    That is the file itself; of a folder, those that are named test, or else all that name no split.

    Raises:
        SourceError: nothing there, or it cannot be reached.
    """
    filesystem, path, found = _list(uri)
    if found is None:
        return ParquetFiles(filesystem, (path,))
    train, test, _ = _by_split(path, found)
    if not (test or train):
        raise SourceError(f"folder {uri} holds no Parquet file to test on", "expected names such as test-0.parquet")
    return ParquetFiles(filesystem, test or train)


def _filesystem(uri: str) -> tuple[Any, str]:
    if "://" in uri:
        if "@" in urlsplit(uri).netloc:
            # The source is part of the settings, and these are written into every output.
            raise SourceError(
                "the parquet: URI holds a user name or key before its @",
                "leave it out; S3 keys are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws",
            )
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, path.rstrip("/")
    return pafs.LocalFileSystem(), str(Path(uri).expanduser())


def _is_file(filesystem: Any, path: str) -> bool:
    try:
        return bool(filesystem.get_file_info(path).type == pafs.FileType.File)
    except OSError as error:
        # Without the right to list a bucket, S3 answers "access denied" for what is not there.
        log.info("%s: taken as absent: %s", path, error)
        return False


def _list(uri: str) -> tuple[Any, str, list[str] | None]:
    """Returns filesystem, path on it, and Parquet files below it; None for these where the path is a file."""
    try:
        filesystem, path = _filesystem(uri)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise SourceError(f"{uri} does not exist", "give a Parquet file, or a folder of them")
        if info.type == pafs.FileType.File:
            return filesystem, path, None
        listing = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{uri} cannot be reached: {error}") from None
    files = sorted(entry.path for entry in listing if entry.type == pafs.FileType.File)
    return filesystem, path, [f for f in files if f.endswith(".parquet") and "/." not in f[len(path) :]]


def _by_split(root: str, paths: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Sorts `paths` into train, test and unused files, by the words in their names below `root`."""
    words = {path: set(re.split(r"[^a-z]+", path[len(root) :].lower())) for path in paths}
    test = tuple(path for path in paths if "test" in words[path])
    held_out = {path for path in paths if words[path] & {"validation", "valid", "val", "dev"}}
    rest = tuple(path for path in paths if path not in test and path not in held_out)
    train = tuple(path for path in rest if "train" in words[path]) or rest
    return train, test, tuple(path for path in paths if path not in train and path not in test)
