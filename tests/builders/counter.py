"""The smallest job that has nothing to do with condensation: it counts.

Every step adds its number to a sum, each worker a share of it. It uses all that a job is given: the collective,
progress, metrics, checkpoints, a time budget.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from condense.workers.checkpoints import Checkpoint, State
from condense.workers.context import WorkerContext
from condense.workers.time_budget import TimeBudget

IDENTITY = "counter"


@dataclass(frozen=True)
class CounterConfig:
    """How far it counts, and on what."""

    storage: str
    total: int = 8
    workers: int = 0
    step_s: float = 0.0  # how long a step takes
    budget_s: float | None = None
    cpus_per_worker: int | None = 1
    gpus_per_worker: float | None = 0
    max_failures: int = 2


@dataclass
class Counter:
    """Its state, which can be stopped and restored."""

    done: int = 0
    sum: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def state(self) -> State:
        return State({"sum": self.sum}, {"done": float(self.done)})

    def restore_(self, checkpoint: Checkpoint) -> None:
        self.sum = checkpoint.tensors["sum"]
        self.done = int(checkpoint.scalars["done"])


def count(config: CounterConfig, context: WorkerContext) -> dict[str, float]:
    """The job, on one worker: the sum, the steps, the step it began with and the number of workers."""
    collective = context.collective
    counter = Counter()
    budget = TimeBudget(
        config.budget_s,
        started=time.perf_counter(),
        evaluations=1,
        every=1,
        ending=0.0,
        collective=collective,
        device=context.device,
    )
    checkpoint = context.checkpoints.latest()
    if checkpoint is not None:
        for part in (counter, budget):
            part.restore_(checkpoint)
    began, total = counter.done, config.total
    while counter.done < total:
        with budget.time_step():
            share = torch.full((1,), (counter.done + 1) / collective.size, dtype=torch.float64)
            counter.sum = counter.sum + collective.sum_(share)
            counter.done += 1
            time.sleep(config.step_s)
        left = budget.left()
        if left is not None:
            total = min(total, counter.done + max(0, int(left.seconds * left.steps / left.spent)))
        values = {"sum": float(counter.sum)}
        if context.first:
            context.tracker.metrics(values, counter.done)
        context.report("counting", counter.done, total, values, milestone=True)
        state = counter.state() | budget.state()
        kept = Checkpoint(counter.done, IDENTITY, state.tensors, state.scalars)
        context.checkpoints.save(kept if context.first else None, values)
    return {"sum": float(counter.sum), "done": counter.done, "began": began, "workers": collective.size}
