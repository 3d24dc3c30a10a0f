"""Defines how a flow is trained: the settings of `condense flow fit`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from condense.flow.architecture import FlowDescription
from condense.flow.mixture import Augmentation
from condense.flow.registry import ARCHITECTURES, unknown
from condense.flow.store import load_card
from condense.settings import Settings, without_passwords
from condense.settings import digest as settings_digest

# Keys that say where a fit works, not what it computes.
PLACES = (
    "root",
    "download",
    "output",
    "checkpoint_every",
    "start_from",  # its digest stands for it
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "max_failures",
    "storage",
    "tracking_uri",
)


class FlowFitConfig(Settings):
    """How one flow is trained."""

    name: str = Field("flow", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The registered model is flow-NAME."""
    source: str | tuple[str, ...]
    """The real data, as in a run; several sources are mixed, and each image is equally likely."""
    validation_fraction: float = Field(0.02, gt=0, lt=1)
    """Share of the train split that held-out bits are measured on."""
    root: Path = Path("data")
    """The folder of torchvision's datasets."""
    download: bool = False
    """Whether torchvision may download them."""

    architecture: FlowDescription = FlowDescription()
    """The flow."""
    start_from: str | None = None
    """A shipped name or a file whose weights training goes on from."""

    steps: int = Field(4000, ge=1)
    """Training steps."""
    batch_size: int = Field(32, ge=1)
    """Images of a step, of all workers together."""
    learning_rate: float = Field(5e-3, gt=0)
    """The learning rate after the warm-up."""
    optimiser: Literal["adam", "muon"] = "adam"
    """What updates the weights: adam or muon."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """constant keeps the learning rate; cosine brings it down to zero at the last step."""
    warmup_steps: int = Field(50, ge=0)
    """Steps in which the learning rate rises."""
    gradient_norm: float = Field(50.0, gt=0)
    """Larger gradients of the loss in bits per dim are scaled down to this norm. Usual norms are near 15: this is for
    spikes. Clipping at 1 was slower (3.98 bits against 3.97 after 50 CPU-seconds, two runs).
    """
    averaging: float = Field(0.998, ge=0, lt=1)
    """Decay of the weights' moving average, which is what is stored."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the coupling networks in training; all else is float32."""
    augmentation: Augmentation = "flip"
    """Augmentation of the train images."""
    blended: float = Field(0.0, ge=0, lt=1)
    """Share of images that are mixed with a constant or noise."""
    initial_images: int = Field(512, ge=1)
    """Images that the channel mixing is initialised from."""
    seed: int = 0
    """The seed of everything that is drawn."""

    output: Path = Path("flow.safetensors")
    """The file that the flow goes to."""
    evaluate_every: int = Field(500, ge=1)
    """Steps between measurements of held-out bits."""
    evaluation_images: int = Field(512, ge=1)
    """Held-out images that are measured."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""

    workers: int = Field(0, ge=0)
    """Ray Train workers that share each batch; 0 is this process."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Cores of each worker; null divides the cluster's."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs of each worker, or a part of one; null divides the cluster's."""
    max_failures: int = Field(3, ge=0)
    """Lost workers that a fit survives."""
    storage: str = "runs"
    """The folder or s3://BUCKET/FOLDER that workers' checkpoints go to; all nodes share it."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """The MLflow server or SQLite file; none keeps no records."""

    @field_validator("architecture")
    @classmethod
    def _architecture_known(cls, value: FlowDescription) -> FlowDescription:
        if value.architecture not in ARCHITECTURES:
            raise ValueError(unknown(value.architecture))
        return value

    @model_validator(mode="after")
    def _each_worker_has_images(self) -> FlowFitConfig:
        if self.workers > self.batch_size:
            raise ValueError(f"{self.workers} workers share a batch of {self.batch_size}: set workers <= batch_size")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The specs, one or several."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished run in process keeps its state, beside the output."""
        return self.output.with_suffix(".checkpoint.safetensors")

    def identity(self) -> str:
        """Returns what makes two fits the same: 16 hexadecimal digits of everything that decides the result."""
        values = self.model_dump(mode="json", exclude=set(PLACES))
        start = None if self.start_from is None else load_card(self.start_from)["digest"]
        return settings_digest({**values, "start": start})[:16]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, as they are shown and tracked: without the passwords that URIs may hold."""
        plain: dict[str, Any] = without_passwords(self.model_dump(mode="json"))
        return plain


def learning_rate_at(config: FlowFitConfig, step: int) -> float:
    """Returns the learning rate of step 0, 1 ...: a linear warm-up, then constant or half a cosine towards zero."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
