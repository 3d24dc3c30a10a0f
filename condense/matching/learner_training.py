"""Starts the network that real and synthetic images are compared in, and trains it between match steps.

    synthetic   a fresh network for each outer step, trained on the synthetic set (Zhao et al. 2021)
    real        a fresh network for each outer step, trained on real images (Kim et al. 2022)
    pool        one of a few networks that were trained on real images once; each time its weights are disturbed in
                proportion to the norm of each output row (Zhang et al. 2023), and it is not trained between match steps

Training is data-parallel over the class slices. All workers draw the same batches, and each adds the gradients of its
own classes' images, so that slices do not change the network. Each network replica has draws, and a pool, of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense import seeding
from condense.data.normalisation import Normalisation
from condense.learners.augment import augment, draw_transforms
from condense.learners.networks import Learner, initialise_
from condense.matching.batches import RealBatches
from condense.matching.config import MatchingConfig
from condense.pixels import to_float
from condense.workers.collective import Collective, sum_all_
from condense.workers.devices import allow_tf32, to_device


class LearnerTraining:
    """Starts and trains one network in place. Its parameters need no gradient outside."""

    def __init__(
        self,
        *,
        matching: MatchingConfig,
        network: Learner,
        normalisation: Normalisation,
        batches: RealBatches,
        seed: int,
        class_count: int,
        flip: bool,
        collective: Collective,
    ) -> None:
        """
        Args:
            batches: the slice's real images, drawn for the replica that this network is.
            class_count: classes of the whole set.
            flip: whether augmentation may mirror.
            collective: the workers that train this replica, each with its slice.
        """
        self.matching, self.network, self.normalisation, self.batches = matching, network, normalisation, batches
        self.seed, self.class_count, self.flip, self.collective = seed, class_count, flip, collective
        self.replica = batches.replica
        self.first_class, self.last_class = batches.labels[0], batches.labels[-1] + 1
        self._momenta: list[Tensor] = []
        self._pool: dict[int, list[Tensor]] = {}

    def start_(self, step: int, match: int) -> None:
        """Makes the network the untrained one of an outer step; of a pool, the one of match step `match`, disturbed."""
        if self.matching.learner_training == "pool":
            self._take_from_pool_(match)
        else:
            self._initialise_("learner", step)

    def _initialise_(self, purpose: str, index: int) -> None:
        initialise_(self.network, seeding.generator(self.seed, purpose, step=index, replica=self.replica))
        self.network.requires_grad_(False)
        self._momenta = [torch.zeros_like(parameter) for parameter in self.network.parameters()]

    @torch.no_grad()
    def _take_from_pool_(self, match: int) -> None:
        draws = seeding.generator(self.seed, "pool", step=match, replica=self.replica)
        index = int(torch.randint(self.matching.pool, (), generator=draws))
        if index not in self._pool:
            self._initialise_("pool-learner", index)
            for step in range(self.matching.pool_steps):
                self.train_on_real_(index * self.matching.pool_steps + step, purpose="pool-images")
            self._pool[index] = [parameter.clone() for parameter in self.network.parameters()]
        for parameter, kept in zip(self.network.parameters(), self._pool[index], strict=True):
            parameter.copy_(kept)
            if parameter.ndim > 1:
                noise = to_device(torch.randn(kept.shape, generator=draws), kept.device).flatten(1)
                scale = kept.flatten(1).norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
                parameter.add_((noise * scale).view_as(kept), alpha=self.matching.pool_noise)

    def train_on_synthetic_(self, images: Tensor, match: int, epochs: int, soft: Tensor | None = None) -> None:
        """Trains for some epochs of SGD on the whole synthetic set.

        The slice has its images (C, n, channels, H, W) in [0, 1].

        soft: their labels (C, n, classes) where they are not hard.
        """
        own = self.normalisation.apply(images.flatten(0, 1))
        per_class = images.shape[1]
        first, count = self.first_class * per_class, self.class_count * per_class
        for epoch in range(epochs):
            draws = seeding.generator(self.seed, "inner-order", step=match, index=epoch, replica=self.replica)
            for batch in torch.randperm(count, generator=draws).split(self.matching.learner_batch):
                mine = (batch >= first) & (batch < first + len(own))
                rows = to_device(batch[mine], own.device)
                inputs = self._augmented(own[rows - first], mine, draws)
                labels = rows // per_class if soft is None else soft.flatten(0, 1)[rows - first]
                self._step_(inputs, [(1.0, labels)], len(batch))

    def train_on_real_(self, match: int, *, purpose: str = "learner-images") -> None:
        """Trains for one pass of SGD over `learner_images` real images, as many of each class; workers share them."""
        per_class = max(1, self.matching.learner_images // self.class_count)
        drawn = self.batches.random(match, size=per_class, purpose=purpose)
        whole = self.normalisation.apply(to_float(self.collective.gather(drawn))).flatten(0, 1)
        draws = seeding.generator(self.seed, purpose + "-order", step=match, replica=self.replica)
        for batch in torch.randperm(len(whole), generator=draws).split(self.matching.learner_batch):
            labels = batch // per_class
            mine = (labels >= self.first_class) & (labels < self.last_class)
            inputs = self._augmented(whole[to_device(batch, whole.device)], torch.ones_like(mine), draws)
            targets = [(1.0, labels[mine])]
            if self.matching.learner_cutmix:
                partners = torch.randperm(len(batch), generator=draws)
                inputs, kept = cutmix(inputs, inputs[to_device(partners, inputs.device)], draws)
                targets = [(kept, labels[mine]), (1 - kept, labels[partners][mine])]
            own = inputs[to_device(mine.nonzero()[:, 0], inputs.device)]
            self._step_(own, [(weight, to_device(labels, own.device)) for weight, labels in targets], len(batch))

    def _augmented(self, images: Tensor, mine: Tensor, draws: torch.Generator) -> Tensor:
        """Augments the images of a batch that `mine` marks, by numbers drawn for the whole batch."""
        for draw in draw_transforms(self.matching.augment, draws, len(mine), flip=self.flip):
            images = augment(images, draw._replace(numbers=draw.numbers[mine])) if len(images) else images
        return images

    @allow_tf32()
    def _step_(self, images: Tensor, targets: list[tuple[float, Tensor]], count: int) -> None:
        """Does one step of SGD on the mean loss of a batch of `count`, of which these normalised images are the
        slice's.
        """
        parameters: list[Tensor] = list(self.network.parameters())
        if len(images):
            with torch.enable_grad():
                self.network.requires_grad_(True)
                logits = self.network.first_order(images)
                losses = [weight * F.cross_entropy(logits, labels, reduction="sum") for weight, labels in targets]
                gradients = list(torch.autograd.grad(torch.stack(losses).sum() / count, parameters))
                self.network.requires_grad_(False)
        else:
            gradients = [torch.zeros_like(parameter) for parameter in parameters]
        sum_all_(self.collective, gradients)
        with torch.no_grad():
            decayed = torch._foreach_add(gradients, parameters, alpha=self.matching.learner_weight_decay)
            torch._foreach_mul_(self._momenta, self.matching.learner_momentum)
            torch._foreach_add_(self._momenta, decayed)
            torch._foreach_sub_(parameters, self._momenta, alpha=self.matching.learner_rate)


def cutmix(images: Tensor, others: Tensor, draws: torch.Generator) -> tuple[Tensor, float]:
    """Puts one box of the others into the images (N, C, H, W), and returns them with the share of each image that is
    kept.

    Yun et al. 2019 with Beta(1, 1), that is a uniform share of the area, and a box of the image's proportions around a
    uniform centre, cut at the border.
    """
    height, width = images.shape[2:]
    share, y, x = torch.rand(3, generator=draws).tolist()
    half_height, half_width = int(height * share**0.5) // 2, int(width * share**0.5) // 2
    top, bottom = max(0, int(y * height) - half_height), min(height, int(y * height) + half_height)
    left, right = max(0, int(x * width) - half_width), min(width, int(x * width) + half_width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
