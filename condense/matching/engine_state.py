"""Moves the images' parameters and their optimiser's state between an engine and a checkpoint.

An engine has one slice of the classes, a checkpoint has all of them. Names are LEVEL.parameter and LEVEL.STATE. A state
of the parameter's shape is a tensor, any other is a number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condense.synthetic.synthetic_set import SyntheticSet
from condense.workers.checkpoints import Checkpoint, State
from condense.workers.collective import Collective


def gather_state(synthetic: SyntheticSet, optimizer: torch.optim.Optimizer, over_slices: Collective) -> State:
    """Returns the whole set's tensors, and the numbers.

    Args:
        synthetic: the slice's images.
        optimizer: of their parameters.
        over_slices: the workers, one of each slice.
    """
    gathered: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for level, parameter in enumerate(synthetic.parameters):
        state = {"parameter": parameter.detach(), **optimizer.state[parameter]}
        if synthetic.averages is not None:
            state |= {"average": synthetic.averages[level], "averaged": synthetic.averaged}
        # By name. After a restart the state has the order in which a file happened to be read, another on every worker,
        # and tensors of one shape would be gathered from different states.
        for name, value in sorted(state.items()):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                gathered[f"{level}.{name}"] = over_slices.gather(value)
            elif value is not None:
                scalars[f"{level}.{name}"] = float(value)
    return State(gathered, scalars)


def restore_state_(synthetic: SyntheticSet, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Takes over what `gather_state` gave, for the classes that the slice owns."""
    rows = slice(synthetic.owned.start, synthetic.owned.stop)
    for level, parameter in enumerate(synthetic.parameters):
        state: dict[str, Any] = {}
        for name, tensor in checkpoint.tensors.items():
            if name.startswith(f"{level}."):
                state[name.removeprefix(f"{level}.")] = tensor[rows].to(parameter.device)
        for name, value in checkpoint.scalars.items():
            if name.startswith(f"{level}."):
                state[name.removeprefix(f"{level}.")] = torch.tensor(value)
        with torch.no_grad():
            parameter.copy_(state.pop("parameter"))
            if synthetic.averages is not None:
                synthetic.averages[level].copy_(state.pop("average"))
                synthetic.averaged = int(state.pop("averaged"))
        if state:
            optimizer.state[parameter] = state
