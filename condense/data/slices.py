"""Loads one worker's classes of a source, and the splits that all workers test on.

What one worker cannot read stops all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from condense.data.digests import class_digests, combine_digests
from condense.data.sources import DataSource, LabelledImages
from condense.data.split_names import Split
from condense.errors import SourceError
from condense.workers.collective import Collective, raise_together
from condense.workers.mesh import Mesh

HELD_BYTES = 1 << 28  # of a split that learners are tested on: a larger one is read piece by piece for each set


def load_slice(source: DataSource, classes: range, collective: Collective, device: torch.device) -> list[Tensor]:
    """Loads the train images of each class of the slice, uint8 (n_c, C, H, W).

    `device` is that of the collective's tensors.

    `device` is that of the collective's tensors.

    Raises:
        SourceError: on all workers, where one of them cannot read an image.
    """
    with _errors_raised_together(collective, device):
        return source.load_classes(classes)


def load_held_out(
    source: DataSource,
    split: Split,
    classes: range,
    mesh: Mesh,
    device: torch.device,
    *,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loads a split, or `limit` images of it, to `device`, sorted by class. Each worker reads its own classes.

    Raises:
        SourceError: on all workers, where one of them cannot read an image.
    """
    with _errors_raised_together(mesh.everyone, device):
        own = source.load(split, classes, limit=limit)
    order = own.labels.argsort(stable=True)  # the same at any number of workers
    images, labels = own.images[order].to(device), own.labels[order].to(device)
    return mesh.over_slices.gather(images), mesh.over_slices.gather(labels)


class HeldOut:
    """Gives the test split in pieces (images, labels).

    A small one is kept, a large one is read for every set that is tested.
    """

    def __init__(self, source: DataSource, classes: range, mesh: Mesh, device: torch.device) -> None:
        """
        Raises:
            SourceError: as `load_held_out`; of a large split not before its images are read.
        """
        self._source = source
        self._size = max(1, HELD_BYTES // math.prod(source.shape))
        self._kept: tuple[Tensor, Tensor] | None = None
        if source.count("test") <= self._size:
            self._kept = load_held_out(source, "test", classes, mesh, device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is not None:
            return iter((self._kept,))
        return ((piece.images, piece.labels) for piece in self._source.pieces("test", self._size))


@contextmanager
def _errors_raised_together(collective: Collective, device: torch.device) -> Iterator[None]:
    """Stops all workers where one of them cannot read its part."""
    failure = None
    try:
        yield
    except SourceError as error:
        failure = error
    raise_together(collective, failure, device)


def source_digest(
    real: Sequence[Tensor], classes: range, class_names: tuple[str, ...], collective: Collective, device: torch.device
) -> str:
    """Digests the whole train split from every slice's classes.

    `collective` has each slice once, `device` is that of its tensors.
    """
    rows = torch.zeros((len(class_names), 32), dtype=torch.uint8)
    for label, images in zip(classes, real, strict=True):
        (text,) = class_digests(LabelledImages(images, torch.full((len(images),), label), class_names)).values()
        rows[label] = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
    # Rows of other workers' classes are zero here, so the sum of int32 rows is the union.
    joined = collective.sum_(rows.int().to(device))
    return combine_digests({label: bytes(row.tolist()).hex() for label, row in enumerate(joined)})
