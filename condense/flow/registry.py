"""Lists the architectures of flows, by the name that a description has for them."""

from __future__ import annotations

from condense.errors import FlowError
from condense.flow.architecture import Flow, FlowDescription
from condense.flow.autoregressive import Autoregressive
from condense.flow.glow import Glow

ARCHITECTURES: dict[str, type[Flow]] = {"autoregressive": Autoregressive, "glow": Glow}


def build(description: FlowDescription) -> Flow:
    """Returns a flow of the described architecture, with the weights that training starts from.

    Raises:
        FlowError: no architecture of that name.
    """
    if description.architecture not in ARCHITECTURES:
        raise FlowError(unknown(description.architecture), "fit a flow anew, or update condense-service")
    return ARCHITECTURES[description.architecture](description)


def unknown(name: str) -> str:
    """Returns what is wrong with the name of an architecture that there is not."""
    return f"unknown architecture {name!r}; one of: {', '.join(sorted(ARCHITECTURES))}"
