"""Lists the architectures of flows, by the name that a description has for them."""

from __future__ import annotations

from condense.flow.architecture import Flow, FlowDescription
from condense.flow.autoregressive import Autoregressive
from condense.flow.glow import Glow

ARCHITECTURES: dict[str, type[Flow]] = {"autoregressive": Autoregressive, "glow": Glow}


def build(description: FlowDescription) -> Flow:
    """Returns a flow of the described architecture, with the weights that training starts from."""
    return ARCHITECTURES[description.architecture](description)
