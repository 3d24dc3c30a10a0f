"""Defines where a job's parameters, metrics and pictures go: the Tracker seam, a null and a recording tracker.

The tracker on MLflow is in the cluster package; this file knows no server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from condense.errors import NonFiniteError, TrackingError

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Takes the parameters, metrics and pictures of one job.

    Steps ascend under each name: a metric or picture at a step at or below the last one of its name is ignored, so a
    run that resumes from a checkpoint and repeats steps leaves no second row. Non-finite metrics raise and nothing of
    that call is kept. A tracker pickles (Ray carries it to a worker) and goes on there; closing twice is fine.
    """

    def params(self, values: Mapping[str, Any]) -> None:
        """Records settings; nested mappings become dotted keys."""
        ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records finite numbers at an outer step; raises NonFiniteError naming the metric otherwise."""
        ...

    def images(self, key: str, grid: Tensor, step: int) -> None:
        """Records one picture at an outer step: uint8 (3, H, W), such as `image_grid` returns."""
        ...

    def rest(self) -> None:
        """Sends nothing until the next call: another process goes on with this run meanwhile."""
        ...

    def close(self, status: Status = "FINISHED") -> None:
        """Ends the run with a status; what waits to be sent is sent first."""
        ...


class NullTracker:
    """Checks what it is given and keeps nothing."""

    def params(self, values: Mapping[str, Any]) -> None:
        flatten(values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        finite_metrics(values, step)

    def images(self, key: str, grid: Tensor, step: int) -> None:
        check_grid(key, grid)

    def rest(self) -> None:
        pass

    def close(self, status: Status = "FINISHED") -> None:
        pass


@dataclass
class RecordingTracker:
    """Keeps everything in memory: `rows[name]` is a list of (step, value), `pictures[key]` of (step, grid)."""

    settings: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    pictures: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    status: Status | None = None

    def params(self, values: Mapping[str, Any]) -> None:
        self.settings.update(flatten(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in finite_metrics(values, step).items():
            row = self.rows.setdefault(name, [])
            if not row or step > row[-1][0]:
                row.append((step, value))

    def images(self, key: str, grid: Tensor, step: int) -> None:
        check_grid(key, grid)
        row = self.pictures.setdefault(key, [])
        if not row or step > row[-1][0]:
            row.append((step, grid.clone()))

    def rest(self) -> None:
        pass

    def close(self, status: Status = "FINISHED") -> None:
        self.status = self.status or status


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys: {"data": {"image_size": 32}} becomes {"data.image_size": 32}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def finite_metrics(values: Mapping[str, float], step: int) -> dict[str, float]:
    """Returns the metrics as floats, if all are finite.

    Raises:
        NonFiniteError: naming the first metric that is infinite or not a number.
    """
    numbers = {name: float(value) for name, value in values.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"metric {name!r} is {value} at outer step {step}", "the run stops before recording it"
            )
    return numbers


def check_grid(key: str, grid: Tensor) -> None:
    """Raises TrackingError unless `grid` is uint8 (3, H, W)."""
    if grid.dtype != torch.uint8 or grid.ndim != 3 or grid.shape[0] != 3:
        raise TrackingError(
            f"picture {key!r} must be uint8 (3, H, W), got {grid.dtype} {tuple(grid.shape)}", "make it with image_grid"
        )
