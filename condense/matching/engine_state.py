"""The images' parameters and their optimiser's state, between an engine, which has a slice, and a whole checkpoint.

Names are LEVEL.parameter and LEVEL.STATE; a state of a parameter's shape is a tensor, any other is a number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condense.matching.engine import Engine
from condense.workers.checkpoints import Checkpoint
from condense.workers.collective import Collective


def gather_state(engine: Engine, collective: Collective) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors, gathered over the slices, and the numbers of a checkpoint."""
    gathered: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for level, parameter in enumerate(engine.synthetic.parameters):
        state = {"parameter": parameter.detach(), **engine.optimizer.state[parameter]}
        if engine.synthetic.averages is not None:
            state |= {"average": engine.synthetic.averages[level], "averaged": engine.synthetic.averaged}
        # By name: after a restart the state has the order in which a file happened to be read, another on every worker,
        # and tensors of one shape would be gathered from different states.
        for name, value in sorted(state.items()):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                gathered[f"{level}.{name}"] = collective.gather(value)
            elif value is not None:
                scalars[f"{level}.{name}"] = float(value)
    return gathered, scalars


def restore_state_(engine: Engine, checkpoint: Checkpoint, rows: slice) -> None:
    """Takes over what `gather_state` gave; rows: the classes of this worker."""
    for level, parameter in enumerate(engine.synthetic.parameters):
        state: dict[str, Any] = {}
        for name, tensor in checkpoint.tensors.items():
            if name.startswith(f"{level}."):
                state[name.removeprefix(f"{level}.")] = tensor[rows].to(parameter.device)
        for name, value in checkpoint.scalars.items():
            if name.startswith(f"{level}."):
                state[name.removeprefix(f"{level}.")] = torch.tensor(value)
        with torch.no_grad():
            parameter.copy_(state.pop("parameter"))
            if engine.synthetic.averages is not None:
                engine.synthetic.averages[level].copy_(state.pop("average"))
                engine.synthetic.averaged = int(state.pop("averaged"))
        if state:
            engine.optimizer.state[parameter] = state
