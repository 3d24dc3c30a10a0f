"""Lists the matching objectives by name, and defines what an objective is.

An objective has two halves. `target(network, real, classes)` computes what does not depend on the synthetic images,
without a graph; it can be kept. `distances(network, target, synthetic, classes) -> (C,)` compares synthetic images with
it. Calling the objective does both. A new objective is a class with these methods in a file of its own, and a line in
`OBJECTIVES` (docs/extending.md). The engine and the loop do not change:

- A trajectory objective (match the end of an expert's training) would take its stretch of expert weights as the target.
  `target` draws it from stored experts, seeded by the batch it is given, and `distances` unrolls the learner from its
  start. It has one distance of all classes together, so it returns that divided evenly and asks for one worker: a slice
  knows only its own classes.
- A kernel objective (ridge regression on features of the network) would have the real features as its target. It
  returns the mean squared error of each class's real images, predicted from the synthetic ones.

Neither sees augmentation, decoding or bits: the engine hands over images as learners see them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from condense.learners.networks import Learner
from condense.matching.objectives.distribution import DistributionMatching
from condense.matching.objectives.gradient import GradientMatching


class Objective(Protocol):
    """Per-class distances between real and synthetic images, as one network sees them.

    Zero when the synthetic images are the real ones; the order of images within a class does not matter.
    """

    fresh_network: bool  # whether every match step takes a network that was never trained

    def target(self, network: Learner, real: Tensor, classes: Tensor) -> Any:
        """Returns what to match, from normalised real images (C, B, channels, H, W) with labels `classes` (C,); no
        graph.
        """

    def distances(self, network: Learner, target: Any, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Returns distances (C,) of normalised synthetic images (C, ipc, channels, H, W); differentiable in them.

        classes: (C,) int64; where labels are soft, and the objective uses labels, (C, ipc, classes), differentiably.
        """

    def __call__(self, network: Learner, real: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Both halves at once: (C,)."""


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "gradient": GradientMatching,
    "distribution": DistributionMatching,
}


def build_objective(name: str, *, distance: str | None, precision: torch.dtype) -> Objective:
    """Returns the objective called `name`."""
    return OBJECTIVES[name](distance=distance, precision=precision)
