"""Draws the real images that a match step sees: random ones, or representatives of their class (DREAM).

Liu et al. 2023 cluster the images of a class in the network's feature space and match the images nearest to the
centres: fewer steps suffice. Ours differs in two ways. It clusters a random part of the class, so that its cost does
not grow with the class. And it takes the features of the network as it is before any training at that outer step, so
that a resumed run chooses the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

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
    """Draws `size` of `count` rows, without replacement where there are enough: (size,) int64."""
    if count >= size:
        return torch.randperm(count, generator=generator)[:size]
    return torch.randint(count, (size,), generator=generator)


def representatives(features: Tensor, count: int) -> Tensor:
    """Returns the rows (count,) of features (n, d) that are nearest to the centres of a k-means.

    The k-means starts at the first `count` rows; n >= count. A centre without rows stays where it is.
    """
    centres = features[:count].clone()
    for _ in range(LLOYD):
        nearest = torch.cdist(features, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        sizes = torch.zeros_like(centres[:, :1]).index_add_(0, nearest, torch.ones_like(features[:, :1]))
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return torch.cdist(centres, features).argmin(1)


class RealBatches:
    """Draws batches of the classes of one slice, for one network replica."""

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
        """Draws images of each class, uint8 (C, size, channels, H, W), with replacement only where size > n_c."""
        rows = []
        for label, images in zip(self.labels, self.real, strict=True):
            draws = seeding.generator(self.seed, purpose, step=match, index=label, replica=self.replica)
            chosen = random_rows(len(images), size or self.size, draws)
            rows.append(images[to_device(chosen, images.device)])
        return torch.stack(rows)

    @torch.no_grad()
    def representative(self, match: int, network: Learner, normalisation: Normalisation) -> Tensor:
        """Returns images near the cluster centres of each class's features, uint8 (C, size, channels, H, W)."""
        rows = []
        for label, images in zip(self.labels, self.real, strict=True):
            draws = seeding.generator(self.seed, "representatives", step=match, index=label, replica=self.replica)
            chosen = random_rows(len(images), max(self.size, min(len(images), CANDIDATES * self.size)), draws)
            candidates = images[to_device(chosen, images.device)]
            features = [network.embed(normalisation.apply(to_float(part))) for part in candidates.split(self.size)]
            rows.append(candidates[representatives(torch.cat(features), self.size)])
        return torch.stack(rows)


class StepBatches:
    """The real batch of every match step of one replica: a new random one, or representatives that are kept for some.

    They are chosen by the network of the match step at which the choice is due. Where a run was resumed since, that
    network is made again for the choice.
    """

    def __init__(
        self,
        choice: Literal["random", "representative"],
        match_steps: int,
        batches: RealBatches,
        network: Learner,
        normalisation: Normalisation,
        start_: Callable[[int, int], None],
    ) -> None:
        """
        Args:
            choice: how images are chosen.
            match_steps: of an outer step.
            batches: draws the images.
            network: the replica's, whose features representatives are chosen by.
            normalisation: of the images that the network sees.
            start_: makes `network` that of an outer step and a match step, before any training.
        """
        self.choice, self.match_steps, self.batches = choice, match_steps, batches
        self.network, self.normalisation, self.start_ = network, normalisation, start_
        self._chosen_at, self._batch = -1, torch.empty(0)

    def at(self, match: int) -> Tensor:
        """Returns the batch of a match step, uint8 (C, B, channels, H, W)."""
        if self.choice == "random":
            return self.batches.random(match)
        due = choice_at(match, self.match_steps)
        if due != self._chosen_at:
            resumed = due < match - match % self.match_steps  # the network of an earlier outer step chooses
            if resumed:
                self.start_(due // self.match_steps, due)
            self._chosen_at, self._batch = due, self.batches.representative(due, self.network, self.normalisation)
            if resumed:
                self.start_(match // self.match_steps, match)
        return self._batch


def choice_at(match: int, match_steps: int) -> int:
    """Returns the match step, at or before `match`, at which representatives are chosen.

    That is the first of an outer step, and then every `EVERY` match steps. Where an outer step has fewer match steps
    than that, several outer steps share a choice.
    """
    outer, inner = divmod(match, match_steps)
    if match_steps >= EVERY:
        return outer * match_steps + inner - inner % EVERY
    window = math.ceil(EVERY / match_steps)
    return (outer - outer % window) * match_steps
