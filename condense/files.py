"""Writes files that appear whole or not at all, and tensors with a JSON header.

A file is written beside its place, synced and renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from condense.errors import OutputError


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
