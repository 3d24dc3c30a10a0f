"""Condenses on Ray Train workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.ray_workers import on_workers
from condense.condensation.config import RunConfig
from condense.condensation.in_process import run_name
from condense.condensation.loop import condense
from condense.settings import validate
from condense.synthetic.dataset import CondensedDataset
from condense.workers.context import Progress, WorkerContext
from condense.workers.tracking import Tracker


def train(
    config: RunConfig, class_count: int, tracker: Tracker, progress: Callable[[Progress], None]
) -> CondensedDataset:
    """Condenses on Ray Train workers, and returns the dataset. An interrupted run of the same config goes on.

    Args:
        config: `workers` is a number of at least 1, or "auto".
        class_count: classes of the source.
        tracker: carried to worker 0.
        progress: called here, in the driver.

    Raises:
        ConfigError: more workers than classes or than the cluster can hold.
        CondenseError: what the workers raised.
    """
    job = partial(_condense, config.as_dict())
    most, replicas = config.max_workers, config.replicas
    made = on_workers(job, run_name(config), config, class_count, tracker, progress, most=most, replicas=replicas)
    assert isinstance(made, CondensedDataset)
    return made


def _condense(values: dict[str, Any], context: WorkerContext) -> CondensedDataset:
    return condense(validate(RunConfig, values, where="the run's config"), context)
