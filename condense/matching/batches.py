"""Which real images a match step sees: random ones, or representatives of their class (DREAM).

Liu et al. 2023 cluster a class's images in the network's feature space and match those nearest to the centres: fewer
steps suffice. Ours clusters a random part of the class, so that the price does not grow with it, and in the features of
the network as it is before any training at that outer step, so that a resumed run chooses the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from condense import seeding
from condense.data.normalisation import Normalisation
from condense.learners.networks import Learner
from condense.pixels import to_float
from condense.workers.devices import to_device

EVERY = 10  # match steps between choices, as published
CANDIDATES = 8  # images of a class among which one representative is chosen
LLOYD = 10  # iterations of k-means: batches need no more than rough centres


def random_rows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` of `count` rows, without replacement where there are enough: (size,) int64."""
    if count >= size:
        return torch.randperm(count, generator=generator)[:size]
    return torch.randint(count, (size,), generator=generator)


def representatives(features: Tensor, count: int) -> Tensor:
    """Rows (count,) of features (n, d) nearest to the centres of a k-means that starts at the first `count` rows.

    n >= count. A centre without rows stays where it is.
    """
    centres = features[:count].clone()
    for _ in range(LLOYD):
        nearest = torch.cdist(features, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        sizes = torch.zeros_like(centres[:, :1]).index_add_(0, nearest, torch.ones_like(features[:, :1]))
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return torch.cdist(centres, features).argmin(1)


class RealBatches:
    """Batches of the classes of one slice, for one network replica."""

    def __init__(self, real: Sequence[Tensor], labels: Sequence[int], size: int, seed: int, replica: int = 0) -> None:
        """
        Args:
            real: uint8 (n_c, channels, H, W) for each class.
            labels: the classes of `real`.
            size: images per class and batch.
            seed: the run's seed.
            replica: each has draws of its own.
        """
        self.real, self.labels, self.size, self.seed, self.replica = real, labels, size, seed, replica

    def random(self, match: int, *, size: int | None = None, purpose: str = "real-batch") -> Tensor:
        """uint8 (C, size, channels, H, W): random images of each class, with replacement only if size > n_c."""
        rows = []
        for label, images in zip(self.labels, self.real, strict=True):
            draws = seeding.generator(self.seed, purpose, step=match, index=label, replica=self.replica)
            chosen = random_rows(len(images), size or self.size, draws)
            rows.append(images[to_device(chosen, images.device)])
        return torch.stack(rows)

    @torch.no_grad()
    def representative(self, match: int, network: Learner, normalisation: Normalisation) -> Tensor:
        """uint8 (C, size, channels, H, W): images nearest to the cluster centres of each class's features."""
        rows = []
        for label, images in zip(self.labels, self.real, strict=True):
            draws = seeding.generator(self.seed, "representatives", step=match, index=label, replica=self.replica)
            chosen = random_rows(len(images), max(self.size, min(len(images), CANDIDATES * self.size)), draws)
            candidates = images[to_device(chosen, images.device)]
            features = [network.embed(normalisation.apply(to_float(part))) for part in candidates.split(self.size)]
            rows.append(candidates[representatives(torch.cat(features), self.size)])
        return torch.stack(rows)


def choice_at(match: int, match_steps: int) -> int:
    """The match step, at or before `match`, at which representatives are chosen: the first of an outer step, and then
    every `EVERY` match steps; of several outer steps together where one has fewer match steps than that."""
    outer, inner = divmod(match, match_steps)
    if match_steps >= EVERY:
        return outer * match_steps + inner - inner % EVERY
    window = math.ceil(EVERY / match_steps)
    return (outer - outer % window) * match_steps
