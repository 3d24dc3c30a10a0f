"""How evaluation networks are trained: the named recipes, and the settings of a run's evaluations."""

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
    learners: int = Field(5, ge=1)  # fresh networks behind the final accuracy
    validation_learners: int = Field(1, ge=1)  # and behind each accuracy during the run
    validation_images: int = Field(2000, ge=1)  # a fixed part of the validation split is enough to follow a run
    every: int = Field(0, ge=0)  # outer steps between evaluations; 0 is five times in a run, with patience twenty
    patience: int = Field(0, ge=0)  # evaluations in a row without progress that end a run early; 0 never does
    # During the run in a process beside training, which goes on meanwhile: the same accuracies, told a little later. It
    # wants a core of its own. Excludes patience and time_budget_s, which decide by an accuracy and by what it took.
    beside: bool = False
    flip: bool = True  # whether `dsa` may mirror images; not for digits and letters
    controls: bool = True  # random, k-means and JPEG real images at the end
    test: bool = True  # whether the test split is read at the end; not by what is still to be chosen from
