"""One outer step, for all classes of a slice at once: THE HOT PATH.

    minimise over S:   mean_c D_c(S)  +  bits_weight * mean_i bits_per_dim(S_i)          (METHOD section 3)

Each term is divided by the count of the whole set, not of the slice, so a class's images move the same way whoever
owns them. With one image per class no worker needs another's images; with more, the learner is trained on the whole
set between match steps, data-parallel over the slices.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from condense import seeding
from condense.collective import Collective
from condense.errors import NonFiniteError
from condense.evaluation import Normalisation
from condense.flow.bits import Density, bits_per_dim
from condense.networks import initialise_
from condense.objectives import Objective
from condense.pixels import to_float
from condense.settings import Settings
from condense.synthetic import ImagesConfig, SyntheticSet, build_optimizer

# (match steps, inner epochs) of the published schedule, by images per class (Zhao et al. 2021).
PUBLISHED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
FLOW_BATCH = 50  # images per pass through the flow: bounds its activations at any images per class


class MatchingConfig(Settings):
    """How real and synthetic images are compared, and how the network is trained in between."""

    distance: Literal["cosine", "mse", "l1"] = "cosine"
    real_batch: int = Field(64, ge=1)  # real images per class and match step; published: 256
    updates: int = Field(5, ge=1)  # image updates for each real batch, whose gradients cost most; published: 1
    steps: int | None = Field(None, ge=1)  # match steps per outer step; None takes the published schedule
    inner_epochs: int | None = Field(None, ge=0)  # epochs of the learner between match steps; None likewise
    learner_rate: float = Field(0.01, gt=0)
    learner_batch: int = Field(256, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"  # of the real images' gradients

    def schedule(self, images_per_class: int) -> tuple[int, int]:
        """(match steps, inner epochs) for any images per class."""
        ipc = images_per_class
        steps, epochs = PUBLISHED.get(ipc, (min(ipc, 50), max(1, round(500 / ipc))))
        return self.steps or steps, epochs if self.inner_epochs is None else self.inner_epochs


class Stopwatch:
    """Seconds by part of the step; waits for the device at each boundary so that the parts are honest."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the enclosed block to `name`."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - started


@dataclass(frozen=True)
class StepResult:
    """One outer step of the whole set: mean distance over classes, mean bits per dim over images (nan without flow)."""

    distance: float
    bits_per_dim: float


class Engine:
    """Owns a slice's synthetic images and moves them one outer step at a time.

    Attributes:
        synthetic: the slice's images.
        optimizer: of their parameters; part of a checkpoint.
        stopwatch: seconds spent in each part.
    """

    def __init__(
        self,
        *,
        matching: MatchingConfig,
        images: ImagesConfig,
        bits_weight: float,
        outer_steps: int,
        seed: int,
        objective: Objective,
        network: nn.Module,
        density: Density | None,
        normalisation: Normalisation,
        real: Sequence[Tensor],
        synthetic: SyntheticSet,
        class_count: int,
        collective: Collective,
    ) -> None:
        """
        Args:
            real: uint8 (n_c, channels, H, W) for each class of the slice, on the device that computes.
            synthetic: the slice's images, classes in the order of `real`.
            class_count: classes of the whole set.
            density: None trains without bits; then `bits_weight` is 0.
        """
        assert density is not None or bits_weight == 0
        self.matching, self.bits_weight, self.seed = matching, bits_weight, seed
        self.objective, self.network, self.density = objective, network, density
        self.normalisation, self.real, self.synthetic = normalisation, real, synthetic
        self.class_count, self.collective = class_count, collective
        self.ipc = synthetic.ipc
        self.match_steps, self.inner_epochs = matching.schedule(self.ipc)
        self.optimizer = build_optimizer(images, synthetic.parameters)
        self.base_rate, self.decays = images.learning_rate, images.schedule == "cosine"
        self.updates = outer_steps * self.match_steps * matching.updates
        self.device = synthetic.classes.device
        self.stopwatch = Stopwatch(self.device)
        self._bad: str | None = None

    def outer_step(self, step: int) -> StepResult:
        """One fresh network: `match_steps` updates of the images, the network trained on them in between.

        Raises:
            NonFiniteError: naming the step and the class.
        """
        initialise_(self.network, seeding.generator(self.seed, "learner", step=step))
        self.network.requires_grad_(False)
        totals = torch.zeros(3, dtype=torch.float64)
        for match in range(self.match_steps):
            totals += self._match(step * self.match_steps + match)
            if match + 1 < self.match_steps:
                with self.stopwatch.part("network training"):
                    self._train_learner_(step * self.match_steps + match)
        with self.stopwatch.part("communication"):
            totals = self.collective.sum_(totals.to(self.device)).cpu() / self.match_steps
        if totals[2] > 0:  # summed over workers, so that all stop at the same step
            whose = self._bad or "a class on another worker"
            raise NonFiniteError(
                f"the loss or gradient of {whose} is not finite at outer step {step}",
                "lower images.learning_rate or bits_weight; the last checkpoint is intact",
            )
        bits = float(totals[1]) if self.density is not None else math.nan
        return StepResult(float(totals[0]), bits)

    def _match(self, match: int) -> Tensor:
        """`matching.updates` image updates towards one real batch; their mean result."""
        with self.stopwatch.part("real gradients"):
            target = self.objective.target(self.network, self._real_batch(match), self.synthetic.classes)
        repeats = self.matching.updates
        results = [self._update_images(target, match * repeats + repeat) for repeat in range(repeats)]
        return torch.stack(results).mean(0)

    def _update_images(self, target: Any, update: int) -> Tensor:
        """One step of the image optimiser; the slice's share of (mean distance, mean bits per dim), and its classes
        whose distance or gradient is not finite."""
        classes = self.synthetic.classes
        images = self.synthetic.images()
        seen = images.detach().requires_grad_()
        with self.stopwatch.part("matching"):
            distances = self.objective.distances(self.network, target, self.normalisation.apply(seen), classes)
            (gradient,) = torch.autograd.grad(distances.sum() / self.class_count, seen)
        bits = torch.zeros((), device=self.device)
        if self.density is not None:
            with self.stopwatch.part("bits"):
                bits, bits_gradient = self._bits(self.density, images.detach(), update)
                gradient = gradient.add_(bits_gradient, alpha=self.bits_weight)
        bad = ~(distances.detach().isfinite() & gradient.flatten(1).isfinite().all(1))
        if bool(bad.any()):
            self._bad = f"class {classes[bad].tolist()[0]}"
        with self.stopwatch.part("image update"):
            self.optimizer.param_groups[0]["lr"] = self._rate(update)
            parameters = self.synthetic.parameters
            for parameter, to_parameter in zip(
                parameters, torch.autograd.grad(images, parameters, gradient), strict=True
            ):
                parameter.grad = to_parameter
            self.optimizer.step()
        share = distances.detach().sum() / self.class_count
        return torch.stack([share, bits, bad.sum()]).double().cpu()

    def _real_batch(self, match: int) -> Tensor:
        """(C, B, channels, H, W), normalised: a random batch of each class, with replacement only if B > n_c."""
        size = self.matching.real_batch
        rows = []
        for label, images in zip(self.synthetic.classes.tolist(), self.real, strict=True):
            draws = seeding.generator(self.seed, "real-batch", step=match, index=label)
            if len(images) >= size:
                chosen = torch.randperm(len(images), generator=draws)[:size]
            else:
                chosen = torch.randint(len(images), (size,), generator=draws)
            rows.append(images[chosen.to(images.device)])
        return self.normalisation.apply(to_float(torch.stack(rows)))

    def _bits(self, density: Density, images: Tensor, update: int) -> tuple[Tensor, Tensor]:
        """The slice's share of the mean bits per dim, and its gradient at the images."""
        count = self.class_count * self.ipc
        noise = torch.stack(
            [
                torch.rand(
                    images.shape[1:], generator=seeding.generator(self.seed, "dequantisation", step=update, index=label)
                )
                for label in self.synthetic.classes.tolist()
            ]
        ).to(self.device)
        total = torch.zeros((), device=self.device)
        gradients = []
        flat = images.flatten(0, 1)
        for part, u in zip(flat.split(FLOW_BATCH), noise.flatten(0, 1).split(FLOW_BATCH), strict=True):
            leaf = part.detach().requires_grad_()
            bits = bits_per_dim(density, leaf, u).sum() / count
            gradients.append(torch.autograd.grad(bits, leaf)[0])
            total = total + bits.detach()
        return total, torch.cat(gradients).view_as(images)

    def _rate(self, update: int) -> float:
        if not self.decays:
            return self.base_rate
        return self.base_rate * 0.5 * (1 + math.cos(math.pi * update / self.updates))

    def _train_learner_(self, match: int) -> None:
        """Epochs of SGD on the whole synthetic set; each worker adds the gradients of its own images."""
        own = self.normalisation.apply(self.synthetic.images().detach().flatten(0, 1))
        labels = self.synthetic.labels.flatten()
        first = int(self.synthetic.classes[0]) * self.ipc
        count = self.class_count * self.ipc
        parameters = list(self.network.parameters())
        self.network.requires_grad_(True)
        for epoch in range(self.inner_epochs):
            draws = seeding.generator(self.seed, "inner-order", step=match, index=epoch)
            for batch in torch.randperm(count, generator=draws).split(self.matching.learner_batch):
                local = batch[(batch >= first) & (batch < first + len(own))].to(self.device) - first
                gradients = [torch.zeros_like(parameter) for parameter in parameters]
                if len(local):
                    loss = F.cross_entropy(self.network(own[local]), labels[local], reduction="sum") / len(batch)
                    gradients = list(torch.autograd.grad(loss, parameters))
                if self.collective.size > 1:
                    flat = self.collective.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
                    parts = flat.split([parameter.numel() for parameter in parameters])
                    gradients = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(gradient, alpha=self.matching.learner_rate)
        self.network.requires_grad_(False)
