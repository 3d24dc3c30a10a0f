"""Defines how synthetic images start and are updated: the settings under `images`, with published recipes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from condense.settings import Settings
from condense.synthetic.soft_labels import Labels

INITS = ("noise", "real", "kmeans", "tiles")


FROM_SET = "set:"  # before the Parquet file of an earlier run, whose images a set starts from


RECIPES: dict[str, dict[str, object]] = {
    # Schirrmeister et al. 2022: a constant Adam rate, which keeps the bits high.
    "simplebits": {"bound": "sigmoid", "parameterisation": "pixels", "init": "noise", "schedule": "constant"},
    # Zhao et al. 2021 use SGD 0.1 on unbounded pixels; through the bound's slope of 1/4 the same step in pixels needs
    # a rate 16 times as large.
    "dc": {"parameterisation": "pixels", "optimizer": "sgd", "learning_rate": 1.6, "schedule": "constant"},
    "default": {"parameterisation": "pyramid"},
}


class ImagesConfig(Settings):
    """How synthetic images start and are updated. `recipe` names the defaults of all the other keys."""

    recipe: Literal["default", "simplebits", "dc"] = "default"
    """Names the defaults of all other keys: default, simplebits (Schirrmeister et al. 2022) or dc (Zhao et al. 2021).
    """
    bound: Literal["sigmoid", "clamp"] = "clamp"
    """What keeps pixels in [0, 1]. clamp reaches black and white in finite steps; sigmoid is flat near them."""
    parameterisation: Literal["pixels", "pyramid"] = "pixels"
    """pixels moves each pixel by itself; pyramid moves whole regions too, so that simple images are reached sooner."""
    init: str = "noise"
    """How images start: noise; real, random images; kmeans, the images nearest to k-means centres; tiles, canvases of
    factor^2 random images; set:PATH, the images of an earlier run.
    """
    init_digest: str | None = None
    """The content digest that the set in init must have; a run fills it in as it starts."""
    factor: int = Field(1, ge=1, le=4)
    """A stored canvas is decoded to factor^2 training images."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """The optimiser of the images."""
    learning_rate: float = Field(0.1, gt=0)
    """The learning rate of that optimiser."""
    betas: tuple[float, float] = (0.5, 0.99)
    """Decay rates of Adam's means of the gradient and of its square, from 0 to 1; only with adam."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """The momentum; only with sgd."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """constant keeps the learning rate; cosine brings it down to zero at the end of the run."""
    labels: Labels = "hard"
    """hard gives each image one class; soft gives it a distribution over the classes, learned with its pixels, at a
    byte for each class, counted as bits.
    """
    label_learning_rate: float = Field(0.1, gt=0)
    """The learning rate of soft labels' logits."""
    averaging: float = Field(0.0, ge=0, lt=1)
    """The result is an exponential moving average of the images' parameters over updates, with this weight of the
    past; 0 takes the last ones.
    """

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        recipe = values.get("recipe", "default")
        return {**RECIPES.get(str(recipe), {}), **values}

    @model_validator(mode="after")
    def _init_known(self) -> ImagesConfig:
        if self.init not in INITS and not self.init.startswith(FROM_SET):
            raise ValueError(f"unknown init {self.init!r}; one of: {', '.join(INITS)}, {FROM_SET}PATH")
        if self.init_digest is not None and self.init in INITS:
            raise ValueError(f"init_digest is of the set in init={FROM_SET}PATH, init is {self.init}")
        return self
