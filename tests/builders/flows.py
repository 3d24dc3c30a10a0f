"""Tiny flows of every architecture, and pictures to measure."""

from __future__ import annotations

import torch

from condense.flow.architecture import Flow, FlowDescription
from condense.flow.registry import build
from condense.seeding import generator

DESCRIPTIONS = {
    "grey": FlowDescription(channels=1, image_size=16, levels=3, steps=2, hidden=4),
    "rgb": FlowDescription(channels=3, image_size=16, levels=2, steps=1, hidden=4, components=1),
    "one level": FlowDescription(channels=1, image_size=16, levels=1, steps=2, hidden=4),
    "autoregressive grey": FlowDescription(architecture="autoregressive", channels=1, image_size=16, steps=2, hidden=8),
    "autoregressive rgb": FlowDescription(architecture="autoregressive", channels=3, image_size=16, steps=1, hidden=8),
}


def tiny_flow(description: FlowDescription) -> Flow:
    """A flow in float64 whose every parameter has moved from its start."""
    draws = generator(0, "tiny-flow")
    flow = build(description).double()
    flow.initialise_(torch.rand((16, *flow.shape), generator=draws, dtype=torch.float64) - 0.5, draws)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return flow


def pictures(flow: Flow, count: int = 3) -> torch.Tensor:
    dtype = next(flow.parameters()).dtype
    return torch.rand((count, *flow.shape), generator=generator(1, "pictures")).to(dtype) - 0.5
