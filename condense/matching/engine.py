"""Does one outer step, for all classes of a slice at once: THE HOT PATH.

    minimise over S:   mean_c D_c(S)  +  bits_weight * mean_i bits_per_dim(S_i)          (METHOD section 3)

Each term is divided by the count of the whole set, not of the slice. So the images of a class move the same way,
whoever owns them. With one image per class no worker needs another's images. With more, the learner is trained on the
whole set between match steps, data-parallel over the slices.

With several network replicas, D_c is the mean of their distances. Each replica has a network, real batches and
augmentation of its own. Where the workers that hold a slice have one replica each, they also share the slice's bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condense.data.normalisation import Normalisation
from condense.errors import NonFiniteError
from condense.flow.bits import Density
from condense.learners.networks import Learner
from condense.matching.batches import RealBatches
from condense.matching.bits_penalty import BitsPenalty
from condense.matching.config import MatchingConfig
from condense.matching.engine_state import gather_state, restore_state_
from condense.matching.learner_training import LearnerTraining
from condense.matching.objectives import Objective
from condense.matching.replica import MatchTarget, Replica, distances_and_gradients, parts_of
from condense.matching.schedule import Schedule
from condense.synthetic.config import ImagesConfig
from condense.synthetic.synthetic_set import SyntheticSet, build_optimizer
from condense.workers.checkpoints import Checkpoint, State
from condense.workers.mesh import Mesh
from condense.workers.stopwatch import Stopwatch

# The parts of an outer step, and the settings that lower the memory that each takes at its peak.
PARTS = {
    "network training": "matching.learner_batch, matching.learner_images or network.width",
    "real gradients": "matching.real_batch or network.width (matching.precision=bfloat16 takes half)",
    "matching": "network.width, images_per_class or images.factor, or set more workers, which share the classes",
    "bits": "images_per_class, or take a smaller flow (bits_precision=bfloat16 takes half)",
    "communication": "images_per_class, or set more workers, which share the classes",
    "image update": "images_per_class, or set more workers, which share the classes",
}


@dataclass(frozen=True)
class StepResult:
    """What an outer step of the whole set found.

    Attributes:
        distance: mean over classes.
        bits_per_dim: mean over images; nan without a flow.
    """

    distance: float
    bits_per_dim: float


class Engine:
    """Owns a slice's synthetic images and moves them one outer step at a time. It is `Resumable`.

    Attributes:
        bits_weight: weight of the mean bits per dim; may be changed between outer steps.
        synthetic: the slice's images.
        schedule: when the run ends.
        replicas: of this worker.
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
        self.bits_weight, self.synthetic, self.class_count, self.mesh = bits_weight, synthetic, class_count, mesh
        self.match_steps, self.inner_epochs = (1, 0) if objective.fresh_network else matching.schedule(synthetic.ipc)
        self.repeats = matching.updates  # image updates towards one real batch
        self.replicas = []
        for number in mesh.own:
            batches = RealBatches(real, synthetic.owned, matching.real_batch, seed, number)
            learner = LearnerTraining(
                matching=matching,
                network=network if number == mesh.own.start else copy.deepcopy(network),
                normalisation=normalisation,
                batches=batches,
                seed=seed,
                class_count=class_count,
                flip=flip,
                collective=mesh.over_slices,
            )
            replica = Replica(
                matching=matching,
                objective=objective,
                learner=learner,
                batches=batches,
                normalisation=normalisation,
                synthetic=synthetic,
                match_steps=self.match_steps,
                inner_epochs=self.inner_epochs,
                seed=seed,
                flip=flip,
            )
            self.replicas.append(replica)
        count = class_count * synthetic.ipc
        self.penalty = (
            None if density is None else BitsPenalty(density, synthetic.owned, seed, count, mesh.over_replicas)
        )
        self.optimizer = build_optimizer(images, synthetic)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.decays = images.schedule == "cosine"
        self.schedule, self.updates = schedule, self.match_steps * self.repeats  # image updates of an outer step
        self.device = synthetic.classes.device
        self.stopwatch = Stopwatch(self.device)
        # The classes that were found not finite at the first update at which any was
        self._first_nonfinite = torch.zeros(len(synthetic.classes), dtype=torch.bool, device=self.device)

    def outer_step(self, step: int) -> StepResult:
        """Does one outer step: `match_steps` real batches to match, each replica's network trained in between.

        Reads from the device only at its end, so that a GPU is never waited for in between.

        Raises:
            NonFiniteError: naming the step and the class.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for match in range(step * self.match_steps, (step + 1) * self.match_steps):
            with self.stopwatch.part("network training"):
                for replica in self.replicas:
                    replica.prepare_(step, match)
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
        bits = float(totals[1]) if self.penalty is not None else math.nan
        return StepResult(float(totals[0]), bits)

    def under_way(self) -> tuple[str, str]:
        """Returns the part of the step that is under way, and the settings that lower the memory it takes."""
        return self.stopwatch.running, PARTS[self.stopwatch.running]

    def start_again_(self, parameters: Sequence[Tensor]) -> None:
        """Sets the images' parameters, and forgets their average and the optimiser's state.

        parameters: as `SyntheticSet.copy_parameters` returned them.
        """
        self.synthetic.set_parameters_(parameters)
        self.optimizer.state.clear()

    def state(self) -> State:
        """Returns the parameters, averages and optimiser's state of the whole set."""
        return gather_state(self.synthetic, self.optimizer, self.mesh.over_slices)

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over what `state` gave, for the classes of the slice."""
        restore_state_(self.synthetic, self.optimizer, checkpoint)

    def _match(self, match: int) -> Tensor:
        """Does the image updates towards one real batch of each replica, and returns their mean result."""
        targets = []
        for replica in self.replicas:
            transforms = replica.draw_transforms(match)
            with self.stopwatch.part("real gradients"):
                targets.append(replica.targets(match, transforms))
        by_part = list(zip(*targets, strict=True))
        results = [self._update_images(by_part, match * self.repeats + repeat) for repeat in range(self.repeats)]
        return torch.stack(results).mean(0)

    def _update_images(self, targets: Sequence[Sequence[MatchTarget]], update: int) -> Tensor:
        """Does one step of the image optimiser, towards each replica's target of each part of the classes.

        Returns (3,): this worker's share of the mean distance and of the mean bits per dim, and the number of its
        classes whose distance or gradient is not finite.
        """
        classes = self.synthetic.classes
        images, labels = self.synthetic.images(), self.synthetic.soft_labels()
        learned = [images] if labels is None else [images, labels]
        bits, bits_gradient = torch.zeros((), device=self.device), None
        if self.penalty is not None:
            with self.stopwatch.part("bits"):
                bits, bits_gradient = self.penalty.measure(images.detach(), update)
        found, gradients, ends = [], [], []
        with self.stopwatch.part("matching"):
            for part, wanted in zip(parts_of(self.synthetic), targets, strict=True):
                own, of_part = distances_and_gradients(
                    self.replicas,
                    wanted,
                    [whole[part] for whole in learned],
                    classes[part],
                    replica_count=self.mesh.replicas,
                    class_count=self.class_count,
                )
                if bits_gradient is not None:
                    of_part[0].add_(bits_gradient[part], alpha=self.bits_weight)
                # The workers of this slice exchange one part while they compute the next. The gradients of matching
                # and of the bits go in one sum, so the bits are measured first: two sums would be waited for.
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

    def _rate(self, update: int, group: int = 0) -> float:
        base: float = self.base_rates[group]
        if not self.decays:
            return base
        return base * 0.5 * (1 + math.cos(math.pi * self.schedule.phase(update, self.updates)))
