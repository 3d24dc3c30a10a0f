"""One outer step, for all classes of a slice at once: THE HOT PATH.

    minimise over S:   mean_c D_c(S)  +  bits_weight * mean_i bits_per_dim(S_i)          (METHOD section 3)

Each term is divided by the count of the whole set, not of the slice, so a class's images move the same way whoever
owns them. With one image per class no worker needs another's images; with more, the learner is trained on the whole
set between match steps, data-parallel over the slices.

With several network replicas D_c is the mean of their distances: each has a network, real batches and augmentation of
its own. Where the workers that hold a slice have a replica each, they also share the slice's bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condense import seeding
from condense.data.normalisation import Normalisation
from condense.errors import NonFiniteError
from condense.flow.bits import Density, bits_per_dim
from condense.learners.augment import Draw, augment_classes, draw_transforms
from condense.learners.networks import Learner
from condense.matching.batches import RealBatches, choice_at
from condense.matching.config import MatchingConfig
from condense.matching.learner_training import LearnerTraining
from condense.matching.objectives import Objective
from condense.matching.schedule import Schedule
from condense.pixels import to_float
from condense.synthetic.config import ImagesConfig
from condense.synthetic.decoder import decode
from condense.synthetic.synthetic_set import SyntheticSet, build_optimizer
from condense.workers.devices import flow_batch, to_device
from condense.workers.mesh import Mesh
from condense.workers.stopwatch import Stopwatch

CLASSES_AT_ONCE = 64  # gradients of the last layer grow with classes x all classes: bounds what is computed at a time


@dataclass(frozen=True)
class StepResult:
    """One outer step of the whole set: mean distance over classes, mean bits per dim over images (nan without flow)."""

    distance: float
    bits_per_dim: float


class _MatchTarget(NamedTuple):
    """What the images of a match step are to come near to, as one replica's network sees it.

    parts: for each of the engine's parts, the transforms of its classes and the target.
    """

    network: Learner
    parts: Sequence[tuple[Sequence[tuple[Draw, ...]], Any]]


class Engine:
    """Owns a slice's synthetic images and moves them one outer step at a time.

    Attributes:
        synthetic: the slice's images.
        learners: the networks of this worker's replicas.
        optimizer: of the images' parameters; part of a checkpoint.
        stopwatch: seconds spent in each part.
    """

    def __init__(
        self,
        *,
        matching: MatchingConfig,
        images: ImagesConfig,
        bits_weight: float,
        schedule: Schedule,
        seed: int,
        objective: Objective,
        network: Learner,
        density: Density | None,
        normalisation: Normalisation,
        real: Sequence[Tensor],
        synthetic: SyntheticSet,
        class_count: int,
        mesh: Mesh,
        flip: bool = True,
    ) -> None:
        """
        Args:
            schedule: of the run; what moves its end moves the learning rate.
            real: uint8 (n_c, channels, H, W) for each class of the slice, on the device that computes.
            synthetic: the slice's images, classes in the order of `real`.
            class_count: classes of the whole set.
            network: of one replica; the others have copies.
            density: None trains without bits; then `bits_weight` is 0.
            flip: whether augmentation may mirror.
        """
        assert density is not None or bits_weight == 0
        self.matching, self.bits_weight, self.seed = matching, bits_weight, seed
        self.objective, self.density = objective, density
        self.normalisation, self.synthetic, self.flip = normalisation, synthetic, flip
        self.class_count, self.mesh = class_count, mesh
        self.ipc = synthetic.ipc
        self.match_steps, self.inner_epochs = (1, 0) if objective.fresh_network else matching.schedule(self.ipc)
        self.learners = [
            LearnerTraining(
                matching=matching,
                network=network if replica == mesh.own.start else copy.deepcopy(network),
                normalisation=normalisation,
                batches=RealBatches(real, synthetic.owned, matching.real_batch, seed, replica),
                seed=seed,
                class_count=class_count,
                flip=flip,
                collective=mesh.over_slices,
            )
            for replica in mesh.own
        ]
        # Of each replica: the match step of their choice, and their batch
        self._representatives: dict[int, tuple[int, Tensor]] = {}
        self.optimizer = build_optimizer(images, synthetic)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.decays = images.schedule == "cosine"
        self.schedule, self.updates = schedule, self.match_steps * matching.updates  # of an outer step
        self.device = synthetic.classes.device
        self.stopwatch = Stopwatch(self.device)
        self._first_nonfinite = torch.zeros(len(synthetic.classes), dtype=torch.bool, device=self.device)

    def outer_step(self, step: int) -> StepResult:
        """One fresh network a replica: `match_steps` real batches to match, the network trained in between.

        Only at its end is anything read from the device, so that a GPU is never waited for in between.

        Raises:
            NonFiniteError: naming the step and the class.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for match in range(step * self.match_steps, (step + 1) * self.match_steps):
            with self.stopwatch.part("network training"):
                for learner in self.learners:
                    self._prepare_learner_(learner, step, match)
            totals += self._match(match)
        with self.stopwatch.part("communication"):
            totals = self.mesh.everyone.sum_(totals).cpu() / self.match_steps
        self.stopwatch.settle()
        if totals[2] > 0:  # summed over workers, so that all stop at the same step
            own = [
                label for label, bad in zip(self.synthetic.owned, self._first_nonfinite.tolist(), strict=True) if bad
            ]
            whose = f"class {own[0]}" if own else "a class on another worker"
            raise NonFiniteError(
                f"the loss or gradient of {whose} is not finite at outer step {step}",
                "lower images.learning_rate or bits_weight; the last checkpoint is intact",
            )
        bits = float(totals[1]) if self.density is not None else math.nan
        return StepResult(float(totals[0]), bits)

    def _prepare_learner_(self, learner: LearnerTraining, step: int, match: int) -> None:
        """The network of a match step: that of the outer step, trained once more."""
        kind = self.matching.learner_training
        if kind == "pool" or match == step * self.match_steps:
            learner.start_(step, match)
        elif kind == "real":
            learner.train_on_real_(match - 1)
        else:
            images, labels = self._decoded(self.synthetic.images().detach()), self.synthetic.soft_labels()
            taught = None if labels is None else self._labels_of_decoded(labels.detach())
            learner.train_on_synthetic_(images, match - 1, self.inner_epochs, taught)

    def _match(self, match: int) -> Tensor:
        """`matching.updates` image updates towards one real batch of each replica; their mean result."""
        goals = [self._goal(learner, match) for learner in self.learners]
        repeats = self.matching.updates
        results = [self._update_images(goals, match * repeats + repeat) for repeat in range(repeats)]
        return torch.stack(results).mean(0)

    def _goal(self, learner: LearnerTraining, match: int) -> _MatchTarget:
        transforms = [
            draw_transforms(
                self.matching.augment,
                seeding.generator(self.seed, "augmentation", step=match, index=label, replica=learner.replica),
                1,
                flip=self.flip,
            )
            for label in self.synthetic.owned
        ]
        with self.stopwatch.part("real gradients"):
            batch, parts = self._real_batch(learner, match), []
            for part in self._parts():
                real = augment_classes(self.normalisation.apply(to_float(batch[part])), transforms[part])
                target = self.objective.target(learner.network, real, self.synthetic.classes[part])
                parts.append((transforms[part], target))
        return _MatchTarget(learner.network, parts)

    def _parts(self) -> list[slice]:
        """The slice's classes, as many at once as memory should hold."""
        starts = range(0, len(self.synthetic.classes), CLASSES_AT_ONCE)
        return [slice(start, start + CLASSES_AT_ONCE) for start in starts]

    def _decoded(self, images: Tensor) -> Tensor:
        """Canvases (C, ipc, channels, H, W) to the images that learners see, (C, ipc * factor^2, channels, H, W)."""
        decoded: Tensor = decode(images.flatten(0, 1), self.synthetic.factor).unflatten(0, (len(images), -1))
        return decoded

    def _labels_of_decoded(self, labels: Tensor) -> Tensor:
        """Soft labels of canvases (C, ipc, classes) to those of the images that learners see: they share them."""
        return labels.repeat_interleave(self.synthetic.factor**2, 1)

    def _update_images(self, goals: Sequence[_MatchTarget], update: int) -> Tensor:
        """One step of the image optimiser; this worker's share of (mean distance, mean bits per dim), and its classes
        whose distance or gradient is not finite."""
        classes = self.synthetic.classes
        images, labels = self.synthetic.images(), self.synthetic.soft_labels()
        learned = [images] if labels is None else [images, labels]
        bits, bits_gradient = torch.zeros((), device=self.device), None
        if self.density is not None:
            with self.stopwatch.part("bits"):
                bits, bits_gradient = self._bits(self.density, images.detach(), update)
        found, gradients, ends = [], [], []
        with self.stopwatch.part("matching"):
            for index, part in enumerate(self._parts()):
                own, of_part = self._matched(goals, index, [whole[part] for whole in learned], classes[part])
                if bits_gradient is not None:
                    of_part[0].add_(bits_gradient[part], alpha=self.bits_weight)
                # The workers of this slice exchange one part while they compute the next. Matching and bits go in one
                # sum, so the bits come first: beginning that of either earlier would leave the other's to wait for.
                ends += [self.mesh.over_replicas.begin_sum_(gradient) for gradient in of_part]
                found.append(own)
                gradients.append(of_part)
        with self.stopwatch.part("communication"):
            for wait in ends:
                wait()
        distances = torch.cat(found)
        gradient, *to_labels = (torch.cat(parts) for parts in zip(*gradients, strict=True))
        finite = [part.flatten(1).isfinite().all(1) for part in (gradient, *to_labels)]
        bad = ~(distances.isfinite() & torch.stack(finite).all(0))
        self._first_nonfinite |= bad & ~self._first_nonfinite.any()
        with self.stopwatch.part("image update"):
            for index, group in enumerate(self.optimizer.param_groups):
                group["lr"] = self._rate(update, index)
            parameters = self.synthetic.parameters
            for parameter, to_parameter in zip(
                parameters, torch.autograd.grad(learned, parameters, [gradient, *to_labels]), strict=True
            ):
                parameter.grad = to_parameter
            self.optimizer.step()
            self.synthetic.average_()
        share = distances.sum() / self.class_count
        return torch.stack([share, bits, bad.sum()]).double()

    def _matched(
        self, goals: Sequence[_MatchTarget], part: int, learned: Sequence[Tensor], classes: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """This worker's share, over its replicas, of a part of the classes' mean distances (C,), and its gradients
        at what is learned of them: images (C, ipc, channels, H, W) and perhaps soft labels (C, ipc, classes)."""
        distances, gradients = [], []
        for network, parts in goals:
            transforms, target = parts[part]
            leaves = [whole.detach().requires_grad_() for whole in learned]
            seen, *soft = leaves
            inputs = augment_classes(self.normalisation.apply(self._decoded(seen)), transforms)
            taught = self._labels_of_decoded(soft[0]) if soft else classes
            own = self.objective.distances(network, target, inputs, taught) / self.mesh.replicas
            gradients.append(torch.autograd.grad(own.sum() / self.class_count, leaves))
            distances.append(own.detach())
        return torch.stack(distances).sum(0), [torch.stack(shares).sum(0) for shares in zip(*gradients, strict=True)]

    def _real_batch(self, learner: LearnerTraining, match: int) -> Tensor:
        """uint8 (C, B, channels, H, W)."""
        if self.matching.real_batch_choice == "random":
            return learner.batches.random(match)
        at = choice_at(match, self.match_steps)
        chosen, batch = self._representatives.get(learner.replica, (-1, None))
        if batch is None or chosen != at:
            resumed = at < match - match % self.match_steps  # the network of an earlier outer step chose them
            if resumed:
                learner.start_(at // self.match_steps, at)
            batch = learner.batches.representative(at, learner.network, self.normalisation)
            self._representatives[learner.replica] = at, batch
            if resumed:
                learner.start_(match // self.match_steps, match)
        return batch

    def _bits(self, density: Density, images: Tensor, update: int) -> tuple[Tensor, Tensor]:
        """This worker's share of the mean bits per dim, and its gradient at the images: zero at those of which another
        worker of the slice measures the bits."""
        count = self.class_count * self.ipc
        draws = (
            seeding.generator(self.seed, "dequantisation", step=update, index=label) for label in self.synthetic.owned
        )
        noise = to_device(torch.stack([torch.rand(images.shape[1:], generator=drawn) for drawn in draws]), self.device)
        total = torch.zeros((), device=self.device)
        flat, noise = images.flatten(0, 1), noise.flatten(0, 1)
        gradient = torch.zeros_like(flat)
        first, end = (len(flat) * (self.mesh.over_replicas.rank + i) // self.mesh.over_replicas.size for i in (0, 1))
        batch = flow_batch(flat)
        for start in range(first, end, batch):
            rows = slice(start, min(start + batch, end))
            leaf = flat[rows].detach().requires_grad_()
            bits = bits_per_dim(density, leaf, noise[rows]).sum() / count
            gradient[rows] = torch.autograd.grad(bits, leaf)[0]
            total = total + bits.detach()
        return total, gradient.view_as(images)

    def _rate(self, update: int, group: int = 0) -> float:
        base: float = self.base_rates[group]
        if not self.decays:
            return base
        return base * 0.5 * (1 + math.cos(math.pi * self.schedule.phase(update, self.updates)))
