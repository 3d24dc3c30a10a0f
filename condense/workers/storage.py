"""Stores checkpoints in a folder that all machines see, or in an object store that pyarrow knows.

Whatever the place, a file in it is whole or absent, and every failure of the place is one error that names it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from condense.errors import CheckpointError, ConfigError, OutputError, reason_of
from condense.files import write_whole
from condense.workers import checkpoints
from condense.workers.checkpoints import Checkpoint

log = logging.getLogger(__name__)

KEEP = 2  # checkpoints of a run: should the last one turn out damaged, the one before it is good
SUFFIX = ".safetensors"
MARK = "started"


class Storage:
    """Keeps files in one folder, on a local disk or on a filesystem that pyarrow knows.

    Args:
        uri: a path, or a URI such as s3://BUCKET/FOLDER. Keys of object stores come from the environment or from the
            store's own files (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws), never from the URI.

    Raises:
        ConfigError: a URI with a user name or key in it, or of a kind that pyarrow does not know.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._filesystem: Any
        if "://" not in uri:
            self._filesystem, self._root = pafs.LocalFileSystem(), str(Path(uri).absolute())
            return
        if "@" in urlsplit(uri).netloc:
            raise ConfigError(
                "the storage URI holds a user name or key before its @",
                "leave it out; S3 keys are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws",
            )
        try:
            self._filesystem, root = pafs.FileSystem.from_uri(uri)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ConfigError(
                f"storage={uri} cannot be used: {reason_of(error)}", "set storage to a folder or s3://BUCKET/FOLDER"
            ) from None
        self._root = root.rstrip("/")

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, whole or not at all: beside its place and renamed, or by one upload.

        Raises:
            OutputError: no space, no permission, no answer; what was there before is there still.
        """
        if self._filesystem.type_name == "local":
            try:
                write_whole(Path(self._path(name)), content)
            except OutputError as error:
                raise OutputError(error.problem, _REMEDY) from None
            return
        with self._failures("written"), self._filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(content)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None where there is none; raises CheckpointError."""
        path = self._path(name)
        with self._failures("read", CheckpointError):
            if self._filesystem.get_file_info(path).type != pafs.FileType.File:
                return None
            with self._filesystem.open_input_stream(path) as stream:
                return bytes(stream.readall())

    def names(self) -> list[str]:
        """Returns the names of the files there, sorted; raises CheckpointError."""
        with self._failures("read", CheckpointError):
            found = self._filesystem.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.File)

    def remove(self, name: str) -> None:
        """Removes a file. One that cannot be removed stays, and that is only logged."""
        try:
            self._filesystem.delete_file(self._path(name))
        except OSError as error:
            log.warning("%s cannot be removed: %s", self.shown(name), reason_of(error))

    def clear(self) -> None:
        """Removes the folder and its files, as `remove` does."""
        try:
            self._filesystem.delete_dir(self._root)
        except OSError as error:
            log.info("%s is not removed: %s", self.uri, reason_of(error))

    def shown(self, name: str) -> str:
        """Returns a file's place as a person writes it."""
        return below(self.uri, name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _failures(self, verb: str, kind: type[OutputError | CheckpointError] = OutputError) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise kind(f"storage={self.uri} cannot be {verb}: {reason_of(error)}", _REMEDY) from None


_REMEDY = (
    "what was kept there last is intact: free space, ask for permission or bring the store back,"
    " then run the same command again"
)


class StoredCheckpoints:
    """Keeps the last KEEP checkpoints of one job, one file each, in a folder of a storage.

    Call `mark` before `save`.
    """

    def __init__(self, storage: str, run: str) -> None:
        self.storage = Storage(below(storage, run))

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Adds a checkpoint, then removes those that are too old.

        Raises:
            OutputError: it cannot be written, or the note of `mark` is gone: a disk was unmounted, a bucket emptied.
        """
        if checkpoint is None:
            return
        if MARK not in self.storage.names():
            raise OutputError(f"storage={self.storage.uri} has lost what this run put there", _REMEDY)
        self.storage.write(file_name(checkpoint.step), checkpoints.pack(checkpoint))
        for step in self.steps()[:-KEEP]:
            self.storage.remove(file_name(step))

    def mark(self, text: str) -> None:
        """Writes a note before work starts, so that it is known at once whether files can be written; raises
        OutputError.
        """
        self.storage.write(MARK, text.encode())

    def marked(self, text: str) -> bool:
        """Returns whether this process sees the note; raises CheckpointError where the storage does not answer."""
        return self.storage.read(MARK) == text.encode()

    def latest(self) -> Checkpoint | None:
        """Returns the checkpoint of the highest step that is whole; a damaged one before it is only logged.

        Raises:
            CheckpointError: none is whole, or the storage does not answer.
        """
        damage: CheckpointError | None = None
        for step in reversed(self.steps()):
            try:
                return self.at(step)
            except CheckpointError as error:
                log.warning("%s", error.problem)
                damage = damage or error
        if damage is not None:
            raise damage
        return None

    def at(self, step: int) -> Checkpoint:
        """Returns the checkpoint of one step; raises CheckpointError where it is missing or damaged."""
        content = self.storage.read(file_name(step))
        if content is None:
            raise CheckpointError(
                f"checkpoint {self.storage.shown(file_name(step))} is not there",
                "set storage to a folder or URI that all nodes share",
            )
        return checkpoints.unpack(content, self.storage.shown(file_name(step)))

    def steps(self) -> list[int]:
        """Returns the steps that are kept, ascending."""
        return [
            int(number)
            for name in self.storage.names()
            if name.startswith("step-") and (number := name[len("step-") :].removesuffix(SUFFIX)).isdecimal()
        ]

    def latest_step(self) -> int:
        """Returns the step of the latest checkpoint, without reading it; 0 without one."""
        return max(self.steps(), default=0)

    def forget(self) -> None:
        """Removes them all."""
        self.storage.clear()


def below(storage: str, name: str) -> str:
    """Returns the folder `name` of a storage, as a storage of its own; a URI keeps its options."""
    address, mark, options = storage.partition("?")
    return f"{address.rstrip('/')}/{name}{mark}{options}"


def absolute(storage: str) -> str:
    """Returns the storage as processes that start in other folders find it: a path becomes absolute."""
    return storage if "://" in storage else str(Path(storage).absolute())


def file_name(step: int) -> str:
    """Returns the file of the checkpoint after `step` outer steps."""
    return f"step-{step:09d}{SUFFIX}"
