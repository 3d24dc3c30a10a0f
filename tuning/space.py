"""Defines what is searched, from one YAML file.

base      a run config: a file beside the search's, or its settings inline; the same for all trials
space     fields of the run config, with dots, each with one of
          log_uniform: [low, high]   uniform: [low, high]   choice: [value, ...]
"""

from __future__ import annotations

import copy
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from condense import settings
from condense.condensation.config import PLACES, RunConfig
from condense.errors import ConfigError
from condense.example_files import located
from condense.settings import Settings
from tuning.score import Aim, Mode

# Trials are compared with each other: what says where they work, or is the measure itself, is the same for all.
FIXED = (*PLACES, "name", "source", "flow", "flow_digest", "data", "evaluation")

# How long a search goes on, not what it searches: may change from one resume to the next.
BUDGET = ("trials", "time_budget_s", "concurrent")


class Domain(Settings):
    """The values that one field may take."""

    log_uniform: tuple[float, float] | None = None
    """[low, high]: a value between them, uniform in its logarithm. low is above 0."""
    uniform: tuple[float, float] | None = None
    """[low, high]: a value between them, uniform."""
    choice: tuple[bool | int | float | str, ...] | None = None
    """[value, ...]: one of these values."""

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in Domain.model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("give one of log_uniform: [low, high], uniform: [low, high], choice: [value, ...]")
        if self.choice is not None:
            if len(set(map(repr, self.choice))) < len(self.choice) or not self.choice:
                raise ValueError("choice needs values, each of them once")
            return self
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"bounds must be finite, got {low:g} and {high:g}")
        if low > high:
            raise ValueError(f"the lower bound {low:g} is above the upper bound {high:g}")
        if self.log_uniform is not None and low <= 0:
            raise ValueError(f"the lower bound of log_uniform must be above 0, got {low:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of a range."""
        bounds = self.log_uniform or self.uniform
        assert bounds is not None
        return bounds

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values that stand for all when the space is checked: both bounds, or every choice."""
        return self.bounds if self.choice is None else self.choice


class EarlyStopping(Settings):
    """When a trial is stopped: another trial's set at the same step is better, by a margin, after a grace period."""

    grace: float = Field(0.5, ge=0, le=1)
    """Share of a trial's outer steps before which nothing is stopped."""
    margin: float = Field(5.0, ge=0)
    """Points of validation accuracy, which is noisy, by which another trial must be better. 3 lost one set in three
    searches.
    """


class WarmStart(Settings):
    """How a trial starts from the finished set of the same images per class whose bits_weight is nearest."""

    steps: float = Field(0.5, gt=0, le=1)
    """Share of outer_steps that such a trial does."""
    rate: float = Field(0.5, gt=0, le=1)
    """Share of images.learning_rate that it begins with."""
    within: float = Field(4.0, gt=1)
    """Ratio of the two weights at most; a trial without such a neighbour starts cold."""


class SearchConfig(Settings):
    """One search."""

    name: str
    """Name of the registered dataset, of the parent run in MLflow, and of the folder under storage."""
    base: dict[str, Any] = Field(default_factory=dict)
    """The run that all trials share: a file beside the search's, or its settings."""
    space: dict[str, Domain] = Field(min_length=1)
    """The fields of the run that vary, each with log_uniform, uniform or choice."""
    trials: int = Field(20, ge=1)
    """How many trials."""
    time_budget_s: float | None = Field(None, gt=0)
    """Seconds for the search, all sittings together; null sets no limit."""
    concurrent: int | None = Field(None, ge=1)
    """Trials side by side; null is as many as the cluster holds."""
    mode: Mode = "front"
    """What the alias best points to: front, the knee of the front; best-under-budget, the most accurate set under
    kilobits; target-accuracy, the cheapest set at accuracy.
    """
    kilobits: float | None = Field(None, gt=0)
    """The most kilobits that the whole set may cost; only with mode best-under-budget."""
    accuracy: float | None = Field(None, gt=0, le=100)
    """The validation accuracy to reach, in percent; only with mode target-accuracy."""
    sampler: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """What suggests trials: tpe, nsga2, random, or grid, which takes every combination of the values in choice, in an
    order that the seed decides.
    """
    early_stopping: EarlyStopping | None = EarlyStopping()
    """When a trial is stopped before its end; null never does."""
    warm_start: WarmStart | None = None
    """How a trial starts from another's finished set; null starts every trial from the run's images.init."""
    seed: int = Field(0, ge=0)
    """The seed of the sampler; a run's own is base.seed."""
    storage: Path = Path("searches")
    """The folder that the search's state goes to; all nodes share it."""

    @field_validator("name")
    @classmethod
    def _name_safe(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("a search's name is letters, digits, dot, dash and underscore, at most 100")
        return value

    @model_validator(mode="after")
    def _number_fits_mode(self) -> SearchConfig:
        wanted = {"best-under-budget": "kilobits", "target-accuracy": "accuracy"}.get(self.mode)
        for key in ("kilobits", "accuracy"):
            if (getattr(self, key) is not None) != (key == wanted):
                raise ValueError(f"mode {self.mode} {'needs' if key == wanted else 'takes no'} {key}")
        return self

    @property
    def aim(self) -> Aim:
        """What is optimised."""
        return Aim(self.mode, self.kilobits, self.accuracy)

    @property
    def folder(self) -> Path:
        """Where the search keeps its state."""
        return self.storage.absolute() / self.name

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, with the base's defaults filled in and without passwords."""
        base = {**RunConfig.model_validate(self.base).as_dict(), "name": self.name}
        return {**self.model_dump(mode="json", exclude_none=True), "base": base}

    def decisive(self) -> dict[str, Any]:
        """Returns what a resumed search must have in common with its beginning."""
        values = self.as_dict()
        base = {key: value for key, value in values["base"].items() if key not in PLACES}
        return {key: value for key, value in values.items() if key not in (*BUDGET, "storage")} | {"base": base}

    def run_config(self, chosen: dict[str, Any], **places: Any) -> RunConfig:
        """Returns the run of one trial: never the test split, and named after the search.

        Args:
            chosen: a value for each field of the space.
            places: workers and what they get.

        Raises:
            ConfigError: values that do not go together.
        """
        values = copy.deepcopy(self.base)
        for key, value in {**chosen, **places, "name": self.name, "evaluation.test": False}.items():
            settings.assign_(values, key, value)
        return settings.validate(RunConfig, values, where=f"search {self.name}: the run with {chosen}")

    def is_integer(self, key: str) -> bool:
        """Returns whether a field of the run config takes whole numbers only."""
        return float not in _types(_annotation(key)) and int in _types(_annotation(key))


def resolve_search(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Returns the search in a YAML file or an example, with its base read in and `key=value` applied; every key of it
    makes sense.

    Raises:
        ConfigError: naming the file and the key.
    """
    path = located(path)
    values = settings.read_yaml(path)
    if isinstance(values.get("base"), str):
        values["base"] = settings.read_yaml(path.parent / values["base"])
    settings.override_(values, overrides)
    search = settings.validate(SearchConfig, values, where=str(path))
    settings.validate(RunConfig, search.base, where=f"{path}: base")
    for key, domain in search.space.items():
        _check(search, key, domain, where=f"{path}: key 'space.{key}'")
    if "time_budget_s" in search.space or "time_budget_s" in search.base:
        raise ConfigError(
            f"{path}: key 'time_budget_s': trials are compared at the same outer steps", "set base.outer_steps"
        )
    if search.early_stopping is not None and ("bits_target" in search.space or "bits_target" in search.base):
        raise ConfigError(
            f"{path}: a run with bits_target begins several times, so its sets along the way are not compared",
            "set early_stopping: null",
        )
    if search.warm_start is not None and ("bits_weight" not in search.space or "images.init" in search.space):
        raise ConfigError(
            f"{path}: key 'warm_start': trials start from the set whose bits_weight is nearest, not from images.init",
            "search bits_weight and not images.init, or leave warm_start out",
        )
    ranges = [key for key, domain in search.space.items() if domain.choice is None]
    if search.sampler == "grid" and ranges:
        raise ConfigError(
            f"{path}: key 'space.{ranges[0]}': a grid has no ranges", "list its values: choice: [value, ...]"
        )
    return search


def _check(search: SearchConfig, key: str, domain: Domain, *, where: str) -> None:
    if key.split(".")[0] in FIXED:
        raise ConfigError(f"{where} is not searched: trials must have it in common", f"set base.{key}")
    if _annotation(key) is None:
        known = ", ".join(name for name in RunConfig.model_fields if name not in FIXED)
        raise ConfigError(f"{where} is no field of a run config", f"fields: {known}; parts of them with dots")
    if domain.choice is None and not _types(_annotation(key)) & {int, float}:
        raise ConfigError(f"{where} is no number, so it has no bounds", "list its values: choice: [value, ...]")
    others = {name: search.space[name].edges[0] for name in search.space}
    for edge in domain.edges:
        value = int(edge) if domain.choice is None and search.is_integer(key) else edge
        try:
            search.run_config({**others, key: value})
        except ConfigError as error:
            raise ConfigError(f"{where}: {value!r} does not fit: {error.problem}", error.remedy) from None


def _annotation(key: str) -> Any:
    """Returns the type of a dotted field of RunConfig; None where there is no such field, or it holds further keys."""
    model: Any = RunConfig
    for part in key.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return None
        model = model.model_fields[part].annotation
    return None if isinstance(model, type) and issubclass(model, BaseModel) else model


def _types(annotation: Any) -> set[Any]:
    """Returns the plain types in an annotation such as `int | None`."""
    is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return set(typing.get_args(annotation)) if is_union else {annotation}
