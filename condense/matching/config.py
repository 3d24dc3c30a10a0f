"""Defines how real and synthetic images are compared, and how the network is trained in between.

The published methods are settings of one thing (METHOD section 3). DC trains the network on the synthetic set. DSA
augments besides. IDC trains it on real images. DM takes a fresh network for every step.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from condense.errors import ConfigError
from condense.learners.augment import Augmentation
from condense.matching.objectives import build_objective
from condense.settings import Settings

# (match steps, inner epochs) of the published schedule, by images per class (Zhao et al. 2021).
PUBLISHED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class MatchingConfig(Settings):
    """How real and synthetic images are compared, and how the network is trained in between."""

    distance: Literal["cosine", "mse", "l1", "mmd"] | None = None
    """Gradients are compared by cosine (the default), mse or l1; embeddings by their means (the default), or by mmd,
    which compares whole distributions.
    """
    real_batch: int = Field(64, ge=1)
    """Real images of each class in a match step; published: 256."""
    real_batch_choice: Literal["random", "representative"] = "random"
    """How they are chosen: random, or representative, which takes the images nearest to real_batch cluster centres of
    their class, anew every 10 match steps.
    """
    updates: int = Field(5, ge=1)
    """Image updates for each real batch, whose gradients cost most; published: 1."""
    steps: int | None = Field(None, ge=1)
    """Match steps of an outer step; null takes the published schedule."""
    augment: Augmentation = "none"
    """Augmentation in matching: one draw for each class and match step, the same for real and synthetic images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of gradients and embeddings, of real and synthetic images. bfloat16 is faster where the processor
    multiplies it, and was as accurate within the spread of seeds.
    """

    learner_training: Literal["synthetic", "real", "pool"] = "synthetic"
    """How the network is trained between match steps. synthetic: on the synthetic set. real: on real images. pool: not
    at all, each match step takes one of pool networks that were trained on real images once, with its weights
    disturbed.
    """
    inner_epochs: int | None = Field(None, ge=0)
    """Epochs on the synthetic set between match steps; null takes the published schedule."""
    learner_images: int = Field(2000, ge=1)
    """Real images of one pass of training on real images, of all classes together; only with real or pool."""
    learner_rate: float = Field(0.01, gt=0)
    """Learning rate of the network's training."""
    learner_batch: int = Field(256, ge=1)
    """Batch size of the network's training."""
    learner_momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of the network's training."""
    learner_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the network's training."""
    learner_cutmix: bool = False
    """Whether real images are mixed by CutMix (Yun et al. 2019)."""
    pool: int = Field(5, ge=1)
    """How many networks the pool has; only with learner_training pool."""
    pool_steps: int = Field(50, ge=0)
    """Training steps of each network of the pool."""
    pool_noise: float = Field(1.0, ge=0)
    """Norm of a disturbance, as a share of the norm of the weights that it is added to."""

    def schedule(self, images_per_class: int) -> tuple[int, int]:
        """Returns (match steps, inner epochs) for any number of images per class."""
        ipc = images_per_class
        steps, epochs = PUBLISHED.get(ipc, (min(ipc, 50), max(1, round(500 / ipc))))
        return self.steps or steps, epochs if self.inner_epochs is None else self.inner_epochs


def check_matching(objective: str, matching: MatchingConfig) -> None:
    """Refuses settings that would have no effect together.

    Raises:
        ConfigError: naming both keys; or what the objective itself refuses.
    """
    build_objective(objective, distance=matching.distance, precision=getattr(torch, matching.precision))
    trains = (matching.steps or 1) > 1 or matching.inner_epochs or matching.learner_training != "synthetic"
    if objective == "distribution" and trains:
        raise ConfigError(
            "objective distribution takes a fresh untrained network for every match step",
            "leave matching.steps, matching.inner_epochs and matching.learner_training out",
        )
    if matching.distance == "mmd" and matching.real_batch < 2:
        raise ConfigError(
            "matching.distance mmd compares real images with each other, matching.real_batch is 1",
            "set matching.real_batch to 2 or more",
        )
    if matching.learner_training == "synthetic" and matching.learner_cutmix:
        raise ConfigError(
            "matching.learner_cutmix mixes real images, matching.learner_training is synthetic",
            "set matching.learner_training to real or pool, or leave matching.learner_cutmix out",
        )
    if matching.learner_training != "synthetic" and matching.inner_epochs is not None:
        raise ConfigError(
            f"matching.inner_epochs counts epochs on the synthetic set, matching.learner_training is "
            f"{matching.learner_training}",
            "leave matching.inner_epochs out, or set matching.learner_training to synthetic",
        )
