"""One worker's part of a source, and what is computed from all workers' parts together: normalisation and digest."""

from __future__ import annotations

import torch
from torch import Tensor

from condense.collective import Collective, agree
from condense.errors import SourceError
from condense.evaluation import Normalisation
from condense.pixels import to_float
from condense.sources import DataSource, LabelledImages, class_digests, combine_digests
from condense.surroundings import Surroundings


def load_slice(source: DataSource, classes: range, around: Surroundings) -> LabelledImages:
    """The slice's train images; an image that one worker cannot read stops all."""
    train, failure = None, None
    try:
        train = source.load("train", classes)
    except SourceError as error:
        failure = error
    agree(around.collective, failure, around.device)
    assert train is not None
    return train


def fixed_part(data: LabelledImages, count: int) -> LabelledImages:
    """The first `count` images in an order that mixes the classes and is always the same."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:count]
    return LabelledImages(data.images[order], data.labels[order], data.class_names)


def normalisation_of(real: list[Tensor], collective: Collective) -> Normalisation:
    """Per-channel mean and deviation of the train split, over all workers."""
    channels = real[0].shape[1]
    sums = torch.zeros((3, channels), dtype=torch.float64, device=real[0].device)
    for images in real:
        for piece in images.split(1000):
            values = to_float(piece).double()
            sums[0] += values.sum((0, 2, 3))
            sums[1] += values.square().sum((0, 2, 3))
            sums[2] += values[:, 0].numel()
    total, squares, count = collective.sum_(sums)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


def source_digest(train: LabelledImages, class_count: int, collective: Collective) -> str:
    """Digest of the whole train split from every worker's classes."""
    rows = torch.zeros((class_count, 32), dtype=torch.uint8)
    for label, text in class_digests(train).items():
        rows[label] = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
    # Rows of other workers' classes are zero here, so the sum of int32 rows is the union.
    joined = collective.sum_(rows.int())
    return combine_digests({label: bytes(row.tolist()).hex() for label, row in enumerate(joined)})
