"""Defines everything that decides a run. The parts lie beside what they configure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from condense import settings
from condense.data.config import DataConfig
from condense.flow.precision import Precision
from condense.learners.networks import NetworkConfig
from condense.learners.recipes import EvaluationConfig
from condense.matching.config import MatchingConfig
from condense.matching.objectives import OBJECTIVES
from condense.settings import Settings
from condense.synthetic.config import ImagesConfig

# Keys that say where a run works and what it is called, not what it computes: they are not part of its identity.
PLACES = (
    "output",
    "tracking_uri",
    "storage",
    "workers",
    "max_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "max_failures",
    "checkpoint_every",
)


class RunConfig(Settings):
    """One condensation run."""

    source: str = "digits"
    """The real data: digits, a torchvision name, parquet:PATH-OR-URI or folder:PATH."""
    name: str | None = None
    """Name of the registered dataset; null makes one of the source and images_per_class."""
    images_per_class: int = Field(1, ge=1)
    """Synthetic images for each class."""
    bits_weight: float = Field(0.0, ge=0)
    """Weight of the mean bits per dim beside the mean matching distance (the papers' lambda; METHOD section 3). 0
    condenses without bits.
    """
    bits_target: float | None = Field(None, gt=0)
    """Mean bits per dim to end at, instead of a weight; takes two to six whole runs."""
    objective: str = "gradient"
    """What is matched: gradient or distribution."""
    outer_steps: int = Field(1000, ge=1)
    """Outer steps, each with a fresh network."""
    replicas: int = Field(1, ge=1)
    """Networks drawn for each match step, whose gradients at the images are averaged."""
    time_budget_s: float | None = Field(None, gt=0)
    """Seconds from the workers' start to the tested set, instead of outer_steps: as many are done as fit in.
    `--budget 10m` sets it.
    """
    seed: int = Field(0, ge=0)
    """The seed of everything that is drawn."""
    flow: str = "auto"
    """The yardstick of bits: a shipped name, a file, models:/flow-NAME@best, or auto, the shipped flow of the images'
    shape.
    """
    flow_digest: str | None = None
    """The digest that the flow must have; a run fills it in as it starts."""
    bits_precision: Precision = "float32"
    """Precision of the flow while images are optimised. What is reported is always float32."""
    data: DataConfig = DataConfig()
    """How real images are read."""
    network: NetworkConfig = NetworkConfig()
    """The networks that images are matched in and tested with."""
    images: ImagesConfig = ImagesConfig()
    """How synthetic images start and are updated."""
    matching: MatchingConfig = MatchingConfig()
    """How real and synthetic images are compared."""
    checkpoint_every: int = Field(0, ge=0)
    """Outer steps between checkpoints; 0 is twenty times in a run."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How sets are evaluated."""

    workers: int | Literal["auto"] = "auto"
    """Ray Train workers, which share the classes; 0 is this process without Ray; auto is one for each GPU, or for
    every two cores.
    """
    max_workers: int | None = Field(None, ge=1)
    """Workers to grow to, from workers, while a cluster has room; null keeps their number."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Cores of each worker; null divides the cluster's."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs of each worker, or a part of one; null divides the cluster's."""
    max_failures: int = Field(3, ge=0)
    """Lost workers that a run survives."""
    output: Path = Path("condensed")
    """The folder that datasets go to."""
    storage: str = "runs"
    """The folder or s3://BUCKET/FOLDER that checkpoints go to; all nodes share it."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """The MLflow server or SQLite file; none keeps no records."""

    @field_validator("workers")
    @classmethod
    def _workers_not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("must be 0 (in this process), a number of workers, or auto")
        return value

    @field_validator("objective")
    @classmethod
    def _objective_known(cls, value: str) -> str:
        if value not in OBJECTIVES:
            raise ValueError(f"unknown objective {value!r}; one of: {', '.join(OBJECTIVES)}")
        return value

    @field_validator("name")
    @classmethod
    def _name_safe(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("a dataset name is letters, digits, dot, dash and underscore, at most 100")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.max_workers is not None and (self.workers in ("auto", 0) or self.max_workers < int(self.workers)):
            raise ValueError("max_workers is at least workers, which is then a number from 1")
        if self.bits_weight == float("inf") or self.bits_weight != self.bits_weight:
            raise ValueError("bits_weight must be finite")
        if self.bits_target is not None and self.bits_weight > 0:
            raise ValueError("bits_target finds the weight of the bits: leave bits_weight at 0")
        if self.bits_target is not None and (self.time_budget_s is not None or self.evaluation.patience):
            raise ValueError("bits_target compares whole runs of outer_steps: no time_budget_s, no evaluation.patience")
        if self.evaluation.beside and self.evaluation.patience:
            raise ValueError(
                "evaluation.patience ends a run by each accuracy at its step, evaluation.beside tells them later:"
                " leave one of them out"
            )
        if self.evaluation.beside and self.time_budget_s is not None:
            raise ValueError(
                "time_budget_s (--budget) counts the time that evaluations keep training waiting, evaluation.beside"
                " does not let it wait: leave one of them out"
            )
        return self

    def identity(self) -> str:
        """Returns what makes two runs the same: 16 hexadecimal digits of everything that decides the result."""
        values = {key: value for key, value in self.as_dict().items() if key not in PLACES}
        values["flow"] = values.pop("flow_digest") or self.flow
        values["images"]["init"] = values["images"].pop("init_digest") or self.images.init
        del values["evaluation"]["beside"]  # says where, not what
        return settings.digest(values)[:16]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, as they go into provenance and tracking: without the password that a URI may hold."""
        values: dict[str, Any] = settings.without_passwords(self.model_dump(mode="json"))
        return values

    def dataset_name(self, source_name: str) -> str:
        """Returns the registered name: `name`, or source and images per class in characters that a folder may have."""
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", source_name).lstrip("._-")[:80] or "set"
        return self.name or f"{words}-ipc{self.images_per_class}"
