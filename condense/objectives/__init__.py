"""Matching objectives, by name.

An objective has two halves, so that what does not depend on the synthetic images is computed without a graph and can
be kept: `target(network, real, classes)` and `distances(network, target, synthetic, classes) -> (C,)`. Calling the
objective does both. A new objective is a class with these methods in a file of its own and a line in `OBJECTIVES`;
the engine and the loop do not change.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from condense.objectives.gradient import GradientMatching


class Objective(Protocol):
    """Per-class distances between real and synthetic images, as one network sees them.

    Zero when the synthetic images are the real ones; the order of images within a class does not matter.
    """

    def target(self, network: nn.Module, real: Tensor, classes: Tensor) -> Any:
        """What to match, from normalised real images (C, B, channels, H, W) with labels `classes` (C,); no graph."""

    def distances(self, network: nn.Module, target: Any, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Distances (C,) of normalised synthetic images (C, ipc, channels, H, W); differentiable in them."""

    def __call__(self, network: nn.Module, real: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Both halves at once: (C,)."""


OBJECTIVES: dict[str, type[GradientMatching]] = {"gradient": GradientMatching}


def build_objective(name: str, *, distance: str, precision: torch.dtype) -> Objective:
    """The objective called `name`."""
    return OBJECTIVES[name](distance=distance, precision=precision)
