"""Writes files that appear whole or not at all, and tensors with a JSON header.

A file is written beside its place, synced and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from condense.errors import OutputError

MIB = 1 << 20
SUM, SUM_LENGTH = "sha256", 16  # of a line: its key and hexadecimal digits
SCRATCH = "condense-scratch-"


def write_whole(path: Path, content: bytes) -> Path:
    """Replaces `path` by `content`; a reader sees the old file or the new one, and an error leaves the old one.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            if beside.exists():
                beside.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}", "choose another folder, or free its disk") from None
    return path


def check_folder_writable(folder: Path, remedy: str = "choose another folder") -> None:
    """Raises OutputError unless files can be made in `folder`; makes it where it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be written: {error}", remedy) from None


def check_space(needed: Mapping[Path, int], remedy: str) -> None:
    """Asks the disks for space. Folders of one disk share what is free there; one that does not exist is made later.

    Args:
        needed: bytes, by folder.
        remedy: what to do where there is less.

    Raises:
        OutputError: naming the folder whose disk has less, what is needed there and what is free.
    """
    together: dict[int, int] = {}
    for folder, size in needed.items():
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        disk = there.stat().st_dev
        together[disk] = together.get(disk, 0) + size
        free = shutil.disk_usage(there).free
        if free < together[disk]:
            raise OutputError(
                f"the disk of {folder} has {free / MIB:.0f} MiB free, and {together[disk] / MIB:.0f} MiB are needed",
                remedy,
            )


@contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """Gives a new folder in `place`, by default the temporary directory, and removes it at the end.

    Its process holds it locked. What a killed one has left there is free, and goes when the next folder is made.

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        place = place or Path(tempfile.gettempdir())
        for left in place.glob(f"{SCRATCH}*"):
            if re.fullmatch(rf"{SCRATCH}[a-z0-9_]{{8}}", left.name):
                _remove_left(left)
        folder, opened = _made_and_locked(place)
    except OSError as error:
        raise OutputError(f"no folder can be made in {place or 'the temporary directory'}: {error}", _TMPDIR) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(opened)


_TMPDIR = "free its disk, or set TMPDIR to another folder"


def _made_and_locked(place: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=place))
        opened = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a disk that knows no locks, where nobody removes it either
            fcntl.flock(opened, fcntl.LOCK_EX)
        if folder.exists():
            return folder, opened
        os.close(opened)  # another process took it for left before it was locked


def _remove_left(folder: Path) -> None:
    """Removes a folder of this user that no process holds; leaves any other."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(opened).st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(opened)


def json_checksum(values: Mapping[str, Any], *more: bytes) -> str:
    """Returns the SHA-256 of values as JSON keeps them, and of more bytes."""
    kept = json.loads(json.dumps(values))  # a tuple is a list there, and a key a string
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for part in more:
        digest.update(part)
    return digest.hexdigest()


def pack_line(record: Mapping[str, Any]) -> str:
    """Returns a record as one line of JSON, with a checksum of what it holds."""
    return json.dumps({**record, SUM: json_checksum(record)[:SUM_LENGTH]}) + "\n"


def unpack_line(line: str | bytes) -> dict[str, Any]:
    """Returns what `pack_line` packed; lines of version 0.1.0 have no checksum.

    Raises:
        ValueError: it is no JSON object, or was altered.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    stated = record.pop(SUM, None)
    if stated not in (None, json_checksum(record)[:SUM_LENGTH]):
        raise ValueError("does not have the checksum that it was written with")
    return record


def unpack_lines(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """Returns what is in whole lines; raises ValueError naming the first that `unpack_line` refuses."""
    records = []
    for row, line in enumerate(lines, start=1):
        try:
            records.append(unpack_line(line))
        except ValueError as error:
            raise ValueError(f"line {row} is damaged: {error}") from None
    return records


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """A safetensors file of contiguous CPU tensors with a JSON header; raises OutputError."""
    write_whole(path, pack_tensors(tensors, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns what `write_tensors` wrote.

    Raises:
        ValueError: the file is not readable, not whole or not ours; the message says which.
    """
    try:
        return unpack_tensors(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read ({error})") from None


def pack_tensors(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """Contiguous CPU tensors and a JSON header in the safetensors format."""
    metadata = {"condense": json.dumps(header, sort_keys=True, allow_nan=False)}
    return bytes(safetensors.torch.save(tensors, metadata=metadata))


def unpack_tensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns what `pack_tensors` packed; nothing in it runs.

    Raises:
        ValueError: it is not whole or not ours; the message says which.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)  # compares every offset with the length
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["condense"])
    except (KeyError, TypeError):
        raise ValueError("holds no Condense header") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"is damaged or no safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise ValueError("holds no Condense header")
    return tensors, header
