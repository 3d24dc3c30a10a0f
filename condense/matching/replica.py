"""Compares real and synthetic images as one network sees them: one network replica of a match step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condense import seeding
from condense.data.normalisation import Normalisation
from condense.learners.augment import Draw, augment_classes, draw_transforms
from condense.matching.batches import RealBatches, StepBatches
from condense.matching.config import MatchingConfig
from condense.matching.learner_training import LearnerTraining
from condense.matching.objectives import Objective
from condense.pixels import to_float
from condense.synthetic.decoder import decode
from condense.synthetic.synthetic_set import SyntheticSet

CLASSES_AT_ONCE = 64  # the last layer's gradients grow with classes x all classes: this bounds what is held at a time


class MatchTarget(NamedTuple):
    """What some classes' images are moved towards: their transforms, and the objective's target."""

    transforms: Sequence[tuple[Draw, ...]]
    target: Any


class Replica:
    """One network, its real batches and its augmentation, for the classes of one slice.

    Attributes:
        number: which of the run's replicas it is.
        learner: the network, and how it is trained between match steps.
    """

    def __init__(
        self,
        *,
        matching: MatchingConfig,
        objective: Objective,
        learner: LearnerTraining,
        batches: RealBatches,
        normalisation: Normalisation,
        synthetic: SyntheticSet,
        match_steps: int,
        inner_epochs: int,
        seed: int,
        flip: bool,
    ) -> None:
        """
        Args:
            objective: measures the distances.
            learner: the network, trained by the workers of this replica.
            batches: real images of the slice's classes.
            synthetic: the slice's images.
            match_steps: of an outer step.
            inner_epochs: of training on the synthetic set between two of them.
            flip: whether augmentation may mirror.
        """
        self.matching, self.objective, self.learner = matching, objective, learner
        self.normalisation, self.synthetic, self.seed, self.flip = normalisation, synthetic, seed, flip
        self.match_steps, self.inner_epochs = match_steps, inner_epochs
        self.number = batches.replica
        choice = matching.real_batch_choice
        self.batches = StepBatches(choice, match_steps, batches, learner.network, normalisation, learner.start_)

    def prepare_(self, step: int, match: int) -> None:
        """Makes the network that of a match step: the network of the outer step, trained once more."""
        kind = self.matching.learner_training
        if kind == "pool" or match == step * self.match_steps:
            self.learner.start_(step, match)
        elif kind == "real":
            self.learner.train_on_real_(match - 1)
        else:
            images, labels = self._decoded(self.synthetic.images().detach()), self.synthetic.soft_labels()
            taught = None if labels is None else self._labels_of_decoded(labels.detach())
            self.learner.train_on_synthetic_(images, match - 1, self.inner_epochs, taught)

    def draw_transforms(self, match: int) -> list[tuple[Draw, ...]]:
        """Draws the augmentation of each class, the same for its real and its synthetic images."""
        return [
            draw_transforms(
                self.matching.augment,
                seeding.generator(self.seed, "augmentation", step=match, index=label, replica=self.number),
                1,
                flip=self.flip,
            )
            for label in self.synthetic.owned
        ]

    def targets(self, match: int, transforms: Sequence[tuple[Draw, ...]]) -> list[MatchTarget]:
        """Returns what a match step's images are moved towards, for each of the slice's parts."""
        batch, found = self.batches.at(match), []
        for part in parts_of(self.synthetic):
            real = augment_classes(self.normalisation.apply(to_float(batch[part])), transforms[part])
            target = self.objective.target(self.learner.network, real, self.synthetic.classes[part])
            found.append(MatchTarget(transforms[part], target))
        return found

    def distances(self, wanted: MatchTarget, learned: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Returns the distances (C,) of some classes, differentiable in what is learned of them.

        Args:
            wanted: of these classes.
            learned: images (C, ipc, channels, H, W) in [0, 1], and soft labels (C, ipc, all classes) if there are any.
            classes: their labels (C,).
        """
        images, *soft = learned
        inputs = augment_classes(self.normalisation.apply(self._decoded(images)), wanted.transforms)
        taught = self._labels_of_decoded(soft[0]) if soft else classes
        return self.objective.distances(self.learner.network, wanted.target, inputs, taught)

    def _decoded(self, images: Tensor) -> Tensor:
        """Decodes canvases (C, ipc, channels, H, W) to the images that learners see, (C, ipc * factor^2, ...)."""
        decoded: Tensor = decode(images.flatten(0, 1), self.synthetic.factor).unflatten(0, (len(images), -1))
        return decoded

    def _labels_of_decoded(self, labels: Tensor) -> Tensor:
        """Repeats the soft labels of canvases (C, ipc, classes) for the images that learners see."""
        return labels.repeat_interleave(self.synthetic.factor**2, 1)


def parts_of(synthetic: SyntheticSet) -> list[slice]:
    """Cuts a slice's classes into parts whose gradients memory holds."""
    starts = range(0, len(synthetic.classes), CLASSES_AT_ONCE)
    return [slice(start, start + CLASSES_AT_ONCE) for start in starts]


def distances_and_gradients(
    replicas: Sequence[Replica],
    wanted: Sequence[MatchTarget],
    learned: Sequence[Tensor],
    classes: Tensor,
    *,
    replica_count: int,
    class_count: int,
) -> tuple[Tensor, list[Tensor]]:
    """Returns this worker's share, over its replicas, of the mean distances (C,) of some classes, and its gradients.

    The gradients are those of the mean distance over all classes, at each part of what is learned.

    Args:
        replicas: of this worker.
        wanted: what each of them moves the images towards.
        learned: images (C, ipc, channels, H, W) in [0, 1], and soft labels (C, ipc, all classes) if there are any.
        classes: their labels (C,).
        replica_count: of the whole run.
        class_count: of the whole set.
    """
    distances, gradients = [], []
    for replica, target in zip(replicas, wanted, strict=True):
        leaves = [whole.detach().requires_grad_() for whole in learned]
        own = replica.distances(target, leaves, classes) / replica_count
        gradients.append(torch.autograd.grad(own.sum() / class_count, leaves))
        distances.append(own.detach())
    return torch.stack(distances).sum(0), [torch.stack(shares).sum(0) for shares in zip(*gradients, strict=True)]
