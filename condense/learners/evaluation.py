"""Trains fresh networks on a set and tests them on real images: what the set is worth.

The recipe is part of every accuracy (METHOD section 4, recipes.py). On a GPU the networks are trained together, with
their parameters stacked along a first dimension. On a CPU that took two to three times as long, so there they are
trained one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense import seeding
from condense.data.normalisation import Normalisation
from condense.errors import NonFiniteError
from condense.learners.augment import augment, crop_scale_rotate, draw_transform
from condense.learners.networks import NetworkConfig, build_network, initialise_
from condense.learners.recipes import Recipe
from condense.learners.stacked import StackedLearners
from condense.pixels import to_float
from condense.workers.collective import Collective
from condense.workers.devices import allow_tf32, to_device

# What an evaluation does, and the settings that lower its memory: for `explain_out_of_memory`.
TESTING = ("testing learners", "evaluation.learners, evaluation.validation_learners or network.width")

TEST_BATCH = 250  # images per forward of each learner; larger ones leave a CPU's cache


@dataclass(frozen=True)
class Evaluation:
    """Holds the test accuracies in percent of networks that were trained on one set, and how they were trained."""

    accuracies: tuple[float, ...]
    recipe: Recipe
    network: NetworkConfig
    seed: int

    @property
    def mean(self) -> float:
        """Mean accuracy, percent."""
        return float(torch.tensor(self.accuracies, dtype=torch.float64).mean())

    @property
    def std(self) -> float | None:
        """Standard deviation over learners (population), percent; None of one learner, which has no spread."""
        if len(self.accuracies) == 1:
            return None
        return float(torch.tensor(self.accuracies, dtype=torch.float64).std(correction=0))

    def description(self) -> dict[str, Any]:
        """Returns plain values for provenance."""
        return {
            "recipe": self.recipe.name,
            "recipe_details": asdict(self.recipe),
            "learners": len(self.accuracies),
            "accuracy_mean": self.mean,
            "accuracy_std": self.std,
            "accuracies": list(self.accuracies),
            "network": self.network.model_dump(),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Evaluator:
    """Trains and tests learners of one kind with one recipe.

    Attributes:
        recipe: how they are trained.
        network: what they are.
        classes: number of classes.
        normalisation: applied to the set and to the test images.
        seed: learner i has the same initial parameters and batch order whoever trains it.
        flip: whether augmentation may mirror.
    """

    recipe: Recipe
    network: NetworkConfig
    classes: int
    normalisation: Normalisation
    seed: int
    flip: bool = True

    @allow_tf32()
    def evaluate(
        self,
        images: Tensor,
        labels: Tensor,
        held_out: Iterable[tuple[Tensor, Tensor]],
        *,
        learners: int,
        collective: Collective,
        on_epoch: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Trains `learners` fresh networks, divided over the workers, and returns their accuracies.

        Args:
            images: uint8 (N, C, H, W), the set to train on.
            labels: int64 (N,), or soft labels, float32 (N, classes).
            held_out: the images to test on in pieces, uint8 (M, C, H, W) and int64 (M,), read once.
            learners: how many networks in all.
            collective: the workers, who all hold the same arguments.
            on_epoch: called between epochs (progress).

        Raises:
            NonFiniteError: a learner's loss stopped being finite.
        """
        mine = range(learners)[collective.rank :: collective.size]
        group = _at_once(learners, images.device)
        scored = torch.zeros((learners,), device=images.device, dtype=torch.float64)
        groups = [mine[start : start + group] for start in range(0, len(mine), group)]
        trained = [self._trained(images, labels, chosen, on_epoch) for chosen in groups]
        tested = 0
        for test_images, test_labels in held_out:
            tested += len(test_labels)
            on_device = test_images.to(images.device), test_labels.to(images.device)
            for chosen, together in zip(groups, trained, strict=True):
                scored[list(chosen)] += self._hits(together, *on_device)
        collective.sum_(scored.mul_(100).div_(tested))
        return Evaluation(tuple(scored.tolist()), self.recipe, self.network, self.seed)

    def _trained(
        self, images: Tensor, labels: Tensor, learners: range, on_epoch: Callable[[], None] | None
    ) -> StackedLearners:
        recipe, device = self.recipe, images.device
        inputs = self.normalisation.apply(to_float(images))
        shape = (images.shape[1], images.shape[2], images.shape[3])
        networks = [
            initialise_(
                build_network(self.network, shape, self.classes), seeding.generator(self.seed, "evaluation", index=i)
            ).to(device)
            for i in learners
        ]
        orders = [seeding.generator(self.seed, "evaluation-order", index=i) for i in learners]
        together = StackedLearners(networks)
        optimizer = torch.optim.SGD(
            together.parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        for epoch in range(recipe.epochs):
            if epoch == recipe.epochs // 2 + 1:
                optimizer.param_groups[0]["lr"] = recipe.learning_rate / 10
            order = to_device(torch.stack([torch.randperm(len(images), generator=draws) for draws in orders]), device)
            for batch in order.split(recipe.batch_size, dim=1):
                chosen = inputs[batch]
                if recipe.augmentation != "none":
                    chosen = self._augment(chosen, orders)
                logits = together.logits(chosen)
                wrong = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(0, 1), reduction="sum")
                loss = wrong / batch.shape[1]  # the sum over learners of their means
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if on_epoch is not None:
                on_epoch()
        if not all(bool(p.isfinite().all()) for p in together.parameters):
            raise NonFiniteError(
                f"an evaluation learner (recipe {recipe.name}) diverged within {recipe.epochs} epochs",
                "the set's images may be degenerate: look at the image grid",
            )
        return together

    def _augment(self, batch: Tensor, draws: list[torch.Generator]) -> Tensor:
        if self.recipe.augmentation == "crop-scale-rotate":
            return torch.stack([crop_scale_rotate(images, draw) for images, draw in zip(batch, draws, strict=True)])
        drawn = [draw_transform(draw, batch.shape[1], flip=self.flip) for draw in draws]
        return torch.stack([augment(images, draw) for images, draw in zip(batch, drawn, strict=True)])

    @torch.no_grad()
    def _hits(self, together: StackedLearners, test_images: Tensor, test_labels: Tensor) -> Tensor:
        """Counts how many of the images each network names right."""
        hits = torch.zeros((), device=test_images.device)
        for part, expected in zip(test_images.split(TEST_BATCH), test_labels.split(TEST_BATCH), strict=True):
            inputs = self.normalisation.apply(to_float(part))
            predicted = together.logits(inputs.expand(together.count, *inputs.shape)).argmax(2)
            hits = hits + (predicted == expected).sum(1)
        return hits.double()


def _at_once(learners: int, device: torch.device) -> int:
    """Returns how many networks take a step together. On a CPU one by one is as fast, and has compiled blocks."""
    return learners if device.type == "cuda" else 1
