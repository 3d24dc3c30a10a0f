"""Holds a run to the flow and to the starting set that it began with, by their digests."""

from __future__ import annotations

from condense.condensation.config import RunConfig
from condense.condensation.warm_start import pin_start
from condense.flow.pinning import flow_digest_of


def pin(config: RunConfig, flow: str | None) -> RunConfig:
    """Returns the config with the digests of its flow and of the set that it starts from. A run starts from this.

    Args:
        config: of the run.
        flow: as `open_checked` named it; None where no bits are asked for.

    Raises:
        FlowError: the flow is not the one of `flow_digest`.
        CondenseError: the set is not there, or not the one of `images.init_digest`.
    """
    config = pin_start(config)
    return config if flow is None else config.model_copy(update={"flow_digest": flow_digest_of(config, flow)})
