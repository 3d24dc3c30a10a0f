"""Keeps what a job can go on from: one small safetensors file for each kept step, written whole or not at all.

A checkpoint holds a job's tensors and numbers (gathered over its workers), the number of steps done, and the identity
of the job. It does not depend on how many workers wrote it. Random generators need no state: they are made from the
seed and the step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from condense.errors import CheckpointError
from condense.files import pack_tensors, unpack_tensors, write_whole

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class State:
    """What one part of a job puts into a checkpoint: tensors and numbers, under names that no other part uses."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)

    def __or__(self, other: State) -> State:
        """Returns both together."""
        return State(self.tensors | other.tensors, self.scalars | other.scalars)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a whole job after `step` steps.

    `identity` is the job's. In a condensation run the leading dimension of each tensor is classes.
    """

    step: int
    identity: str
    tensors: dict[str, Tensor]
    scalars: dict[str, float]


class Resumable(Protocol):
    """A part of a job that can be stopped and restored. All workers call both methods at the same step."""

    def state(self) -> State:
        """Returns what the part needs to go on, the same on every number of workers."""

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over what `state` gave; what the checkpoint does not have stays as it is."""


class Checkpoints(Protocol):
    """Where checkpoints go. Every worker calls both methods; `save` is given None by all but rank 0."""

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Makes the checkpoint the latest."""

    def latest(self) -> Checkpoint | None:
        """Returns the last one that was saved under this job, or None."""


class NoCheckpoints:
    """Keeps nothing."""

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Does nothing."""

    def latest(self) -> Checkpoint | None:
        """Returns None."""
        return None


class LocalCheckpoints:
    """The latest checkpoint in one folder, as one file."""

    def __init__(self, folder: Path, file: str = FILE) -> None:
        self.path = folder / file

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Replaces the stored checkpoint."""
        if checkpoint is not None:
            write(checkpoint, self.path)

    def latest(self) -> Checkpoint | None:
        """Returns the stored checkpoint, if there is one."""
        return read(self.path) if self.path.exists() else None

    def latest_step(self) -> int:
        """Returns the step of the stored checkpoint; 0 without one."""
        stored = self.latest()
        return 0 if stored is None else stored.step


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint to `path`, whole or not at all.

    Raises:
        OutputError: the folder cannot be written; an older checkpoint there is intact.
    """
    write_whole(path, pack(checkpoint))


def read(path: Path) -> Checkpoint:
    """Reads the checkpoint in `path`.

    Raises:
        CheckpointError: the file is truncated or is no checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None
    return unpack(content, str(path))


def pack(checkpoint: Checkpoint) -> bytes:
    """Packs a checkpoint as the content of a safetensors file."""
    header: dict[str, Any] = {
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "scalars": checkpoint.scalars,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    return pack_tensors(tensors, header | {"checksum": _checksum(tensors, header)})


def unpack(content: bytes, where: str) -> Checkpoint:
    """Unpacks what `pack` packed; `where` names it in the error.

    Raises:
        CheckpointError: it is truncated, altered, or no checkpoint.
    """
    try:
        tensors, header = unpack_tensors(content)
        stated = header.pop("checksum", None)  # checkpoints of version 0.1.0 have none
        if stated not in (None, _checksum(tensors, header)):
            raise ValueError("is damaged: its content does not have the checksum that it was written with")
        return Checkpoint(int(header["step"]), str(header["identity"]), tensors, dict(header["scalars"]))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {where} {error}", "delete it to start this run anew") from None


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes."""
    hashed = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
