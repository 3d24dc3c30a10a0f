"""Moves the state of a flow in training to a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condense.errors import CheckpointError
from condense.flow.architecture import Flow
from condense.workers.checkpoints import Checkpoint

CURVE = ("step", "cpu_seconds", "seconds", "bits_per_dim")


@dataclass
class FitState:
    """The flow, its average, Adam's moments, the step, and the record so far; the same on every worker.

    cpu_seconds: of all workers. seconds: on the wall clock. curve: held-out bits with the keys of `CURVE`.
    """

    flow: Flow
    average: Flow
    optimiser: torch.optim.Adam
    step: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


def to_checkpoint(state: FitState, identity: str) -> Checkpoint:
    """Returns everything that a fit goes on from, after at least one step."""
    tensors = _targets(state)
    tensors["curve"] = torch.tensor([[point[key] for key in CURVE] for point in state.curve], dtype=torch.float64)
    return Checkpoint(state.step, identity, tensors, {"cpu_seconds": state.cpu_seconds, "seconds": state.seconds})


def restore_(state: FitState, checkpoint: Checkpoint, identity: str) -> None:
    """Takes over a checkpoint's state.

    Raises:
        CheckpointError: it belongs to another recipe, or does not hold this one's tensors.
    """
    if checkpoint.identity != identity:
        raise CheckpointError(
            f"the stored checkpoint belongs to another recipe ({checkpoint.identity}, this is {identity})",
            "restore its settings, or start anew without --resume",
        )
    for parameter in state.flow.parameters():
        state.optimiser.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    targets = _targets(state)
    stored = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "curve"}
    if {name: t.shape for name, t in targets.items()} != {name: t.shape for name, t in stored.items()}:
        raise CheckpointError(
            "the stored checkpoint does not hold this recipe's tensors", "start anew without --resume"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored[name])
    state.step = checkpoint.step
    state.cpu_seconds, state.seconds = checkpoint.scalars["cpu_seconds"], checkpoint.scalars["seconds"]
    state.curve = [
        dict(zip(CURVE, [int(step), *values], strict=True)) for step, *values in checkpoint.tensors["curve"].tolist()
    ]


def _targets(state: FitState) -> dict[str, Tensor]:
    names = [name for name, _ in state.flow.named_parameters()]
    moments = [state.optimiser.state[parameter] for parameter in state.flow.parameters()]
    groups = {
        "flow": state.flow.state_dict(),
        "average": state.average.state_dict(),
        "first": {name: moment["exp_avg"] for name, moment in zip(names, moments, strict=True)},
        "second": {name: moment["exp_avg_sq"] for name, moment in zip(names, moments, strict=True)},
    }
    return {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
