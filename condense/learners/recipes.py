"""Defines how evaluation networks are trained: the named recipes, and the settings under `evaluation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from condense.settings import Settings


@dataclass(frozen=True)
class Recipe:
    """How an evaluation learner is trained. Recorded with every accuracy."""

    name: str
    epochs: int
    augmentation: Literal["none", "crop-scale-rotate", "dsa"]
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256


RECIPES = {
    "dc": Recipe("dc", epochs=300, augmentation="none"),
    "dc-augmented": Recipe("dc-augmented", epochs=1000, augmentation="crop-scale-rotate"),
    "dsa": Recipe("dsa", epochs=1000, augmentation="dsa"),
}


class EvaluationConfig(Settings):
    """How sets are evaluated, during a run on the validation split and once at its end on the test split."""

    recipe: Literal["dc", "dc-augmented", "dsa"] = "dc"
    """dc (300 epochs), dc-augmented (1000 epochs, each image shifted, scaled or rotated) or dsa (1000 epochs with
    Siamese augmentation). Recorded with every accuracy.
    """
    learners: int = Field(5, ge=1)
    """Fresh networks behind the final accuracy."""
    validation_learners: int = Field(1, ge=1)
    """Fresh networks behind each accuracy during the run."""
    validation_images: int = Field(2000, ge=1)
    """Validation images that a run is followed with."""
    every: int = Field(0, ge=0)
    """Outer steps between evaluations; 0 is five times in a run, with patience twenty times."""
    patience: int = Field(0, ge=0)
    """Evaluations in a row without progress that end a run early; 0 never does."""
    beside: bool = False
    """Evaluates in a process beside training, which goes on meanwhile: the same accuracies, a little later. It wants a
    core of its own. It excludes patience and time_budget_s: the first decides by each accuracy at its step, the
    second by the time that evaluations take.
    """
    flip: bool = True
    """Whether augmentation may mirror images; false for digits and letters."""
    controls: bool = True
    """Whether controls are tested at the end: random real images, those nearest to k-means centres, and the random ones
    brought to the bits of the set, as JPEG and by blur.
    """
    test: bool = True
    """Whether the test split is read at the end. A search leaves it unread, so that it chooses by validation alone."""
