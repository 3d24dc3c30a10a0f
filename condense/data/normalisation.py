"""Brings images to zero mean and unit deviation, with the mean and deviation of the train split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condense.pixels import to_float
from condense.workers.collective import Collective
from condense.workers.devices import to_device


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of the train split in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """Brings images (..., C, H, W) in [0, 1] to zero mean and unit deviation."""
        shape = (-1, 1, 1)
        mean, std = (
            to_device(torch.tensor(values, dtype=images.dtype).view(shape), images.device)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std


PIECE_VALUES = 3_072_000  # pixel values that become float64 at once: 1000 images of 3x32x32


def normalisation_of(real: Sequence[Tensor], collective: Collective) -> Normalisation:
    """Computes the mean and deviation of each channel of the train split; `collective` has each of its slices once."""
    channels = real[0].shape[1]
    sums = torch.zeros((3, channels), dtype=torch.float64, device=real[0].device)
    for images in real:
        for piece in images.split(max(1, min(1000, PIECE_VALUES // images[0].numel()))):
            values = to_float(piece).double()
            sums[0] += values.sum((0, 2, 3))
            sums[1] += values.square().sum((0, 2, 3))
            sums[2] += values[:, 0].numel()
    total, squares, count = collective.sum_(sums)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))
