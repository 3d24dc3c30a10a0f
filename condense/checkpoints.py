"""Where a run can go on from: one small safetensors file per kept step, written whole or not at all.

A checkpoint holds the whole set's parameters and optimiser state (gathered over workers), the next outer step, and
the identity of the run. It does not depend on how many workers wrote it. Random generators need no state: they are
made from the seed and the step.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from condense.errors import CheckpointError, OutputError

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` outer steps; the leading dimension of each tensor is classes. `identity` is the run's."""

    step: int
    identity: str
    tensors: dict[str, Tensor]
    scalars: dict[str, float]


class Checkpoints(Protocol):
    """Where checkpoints go. Every worker calls both methods; `save` is given None by all but rank 0."""

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Makes the checkpoint the latest."""

    def latest(self) -> Checkpoint | None:
        """The last one saved under this run, or None."""


class NoCheckpoints:
    """Keeps nothing."""

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Nothing."""

    def latest(self) -> Checkpoint | None:
        """None."""
        return None


class LocalCheckpoints:
    """The latest checkpoint in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Replaces the stored checkpoint."""
        if checkpoint is not None:
            write(checkpoint, self.folder / FILE)

    def latest(self) -> Checkpoint | None:
        """The stored checkpoint, if there is one."""
        path = self.folder / FILE
        return read(path) if path.exists() else None


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Writes beside `path`, syncs, and renames.

    Raises:
        OutputError: the folder cannot be written; an older checkpoint there is intact.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"step": checkpoint.step, "identity": checkpoint.identity, "scalars": checkpoint.scalars}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()},
            beside,
            metadata={"condense": json.dumps(header)},
        )
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise OutputError(f"checkpoint {path} cannot be written: {error}", "free space or set storage=FOLDER") from None


def read(path: Path) -> Checkpoint:
    """The checkpoint in `path`.

    Raises:
        CheckpointError: the file is truncated or is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["condense"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(int(header["step"]), str(header["identity"]), tensors, dict(header["scalars"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {type(error).__name__}: {error}", "delete it to start this run anew"
        ) from None
