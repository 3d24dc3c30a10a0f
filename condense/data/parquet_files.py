"""Finds the Parquet files that a path or URI means, and says to which split each belongs.

The files are on a local disk or on any filesystem that pyarrow knows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from condense.data.hub_card import sort_by_card
from condense.data.split_names import WORDS, Split, beside, left_out, named_splits, shown, sort_by_name, sort_by_pattern
from condense.errors import CondenseError, SourceError, reason_of

log = logging.getLogger(__name__)

MAX_README_BYTES = 1 << 20  # its head is what is read of it


@dataclass(frozen=True)
class ParquetFiles:
    """Files of one split on one filesystem, in name order."""

    filesystem: pafs.FileSystem
    paths: tuple[str, ...]

    def shown(self, path: str) -> str:
        """Returns a path as a person writes it: its filesystem's type_name before it, unless it is local."""
        kind = self.filesystem.type_name
        return path if kind == "local" else f"{kind}://{path}"

    @property
    def listed(self) -> str:
        """The names of the files, for a message."""
        return shown([path.rpartition("/")[2] for path in self.paths])


@dataclass(frozen=True)
class SplitFiles:
    """Files of each split, None where there are none; left_out says in words what is not read."""

    train: ParquetFiles
    validation: ParquetFiles | None = None
    test: ParquetFiles | None = None
    left_out: tuple[str, ...] = ()


def split_files(uri: str, *, config: str | None = None, patterns: Mapping[Split, str] | None = None) -> SplitFiles:
    """Finds the files of each split at a path or URI.

    A folder's files belong to the split that its README.md says, as in a Hugging Face repository, or else their names
    or folders (`split_names.WORDS`); where none says anything, all are train. Beside a single train file, those of the
    other splits are named alike.

    Args:
        uri: a Parquet file, or a folder of them.
        config: the configuration to take, where a folder has several.
        patterns: by split, of the files' paths below the folder; they replace what the names say.

    Raises:
        SourceError: nothing there, it cannot be reached, or the splits cannot be told.
    """
    filesystem, path, found, left_out = _list(uri)
    if found is None:
        if patterns or config:
            raise SourceError(
                f"{uri} is a file; data.split_files and data.config choose in a folder", "name its folder"
            )
        folder, separator, name = path.rpartition("/")
        names, root = beside(name, _names_beside(filesystem, folder, name)), folder + separator
    else:
        root = path + "/"
        listed = [file[len(root) :] for file in found]
        if patterns:
            names = sort_by_pattern(f"folder {uri}", listed, patterns)
        else:
            said = sort_by_card(f"folder {uri}", listed, _readme(filesystem, root), config)
            names = said or sort_by_name(f"folder {uri}", listed, config)
    if not names.train:
        raise SourceError(f"folder {uri} holds no Parquet file to train on", "expected names such as train-0.parquet")

    def files(of: tuple[str, ...]) -> ParquetFiles | None:
        return ParquetFiles(filesystem, tuple(root + name for name in of)) if of else None

    train = ParquetFiles(filesystem, tuple(root + name for name in names.train))
    return SplitFiles(train, files(names.validation), files(names.test), (*names.left_out, *left_out))


def test_files(uri: str) -> ParquetFiles:
    """Finds the test files at a path or URI.

    That is the file itself; of a folder, those that are named test, or else all that name no split.

    Raises:
        SourceError: nothing there, it cannot be reached, or the splits cannot be told.
    """
    filesystem, path, found, _ = _list(uri)
    if found is None:
        return ParquetFiles(filesystem, (path,))
    said = {file: named_splits(file[len(path) :]) for file in found}
    for wanted in ({"test"}, {"evaluation"}, set[str]()):
        if files := tuple(file for file in found if said[file] == wanted):
            return ParquetFiles(filesystem, files)
    raise SourceError(f"folder {uri} holds no Parquet file to test on", "expected names such as test-0.parquet")


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


def _readme(filesystem: Any, root: str) -> str:
    if not _is_file(filesystem, f"{root}README.md"):
        return ""
    try:
        with filesystem.open_input_file(f"{root}README.md") as file:
            return str(file.read(MAX_README_BYTES).decode("utf-8", errors="replace"))
    except OSError as error:
        log.info("%sREADME.md: not read: %s", root, error)
        return ""


def _names_beside(filesystem: Any, folder: str, name: str) -> list[str]:
    try:
        entries = filesystem.get_file_info(pafs.FileSelector(folder or "."))
        return sorted(e.base_name for e in entries if e.type == pafs.FileType.File and e.extension == "parquet")
    except OSError as error:
        # Who may read one object of a bucket may not be allowed to list it.
        log.info("%s cannot be listed: %s", folder, error)
        paired = [re.sub("train(ing)?", word, name) for word in WORDS]
        return [other for other in paired if other != name and _is_file(filesystem, f"{folder}/{other}")]


def _list(uri: str) -> tuple[Any, str, list[str] | None, list[str]]:
    """Returns filesystem, path on it, Parquet files below it (None where the path is a file), and what is left out."""
    try:
        filesystem, path = _filesystem(uri)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise SourceError(f"{uri} does not exist", "give a Parquet file, or a folder of them")
        if info.type == pafs.FileType.File:
            return filesystem, path, None, []
        listing = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except CondenseError:
        raise
    except Exception as error:  # noqa: BLE001 - each remote filesystem raises errors of its own network library
        raise SourceError(
            f"{uri} cannot be reached: {reason_of(error)}", "check the address, the network and the right to read"
        ) from None
    files = sorted(entry.path for entry in listing if entry.type == pafs.FileType.File)
    open_ones = [file for file in files if "/." not in file[len(path) :]]
    taken = [file for file in open_ones if file.endswith(".parquet")]
    return filesystem, path, taken, left_out(len(files) - len(open_ones), set(open_ones) - set(taken))
