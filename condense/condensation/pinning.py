"""The flow of a run: found by its reference, and held to the digest that the run began with.

A run's identity holds its flow's digest and not its reference: `flow=grey32` in another version of this package, a file
that was trained again, or an alias `@best` that moved make another run, never one that goes on with another yardstick.

A flow in MLflow's registry is brought to the run's storage by the layer that knows MLflow, under its digest, so that
every worker finds it there.
"""

from __future__ import annotations

import torch

from condense.condensation.config import RunConfig
from condense.condensation.warm_start import pin_start
from condense.errors import FlowError
from condense.flow.architecture import Flow
from condense.flow.store import REGISTERED, load_card, load_flow, read_flow
from condense.workers.storage import Storage, below


def pin(config: RunConfig, flow: str | None) -> RunConfig:
    """The config with the digests of its flow and of the set that it starts from; a run starts from this.

    Args:
        flow: as `open_checked` named it; None where no bits are asked for.

    Raises:
        FlowError: it is not the one of `flow_digest`.
        CondenseError: the set is not there, or not the one of `images.init_digest`.
    """
    config = pin_start(config)
    if flow is None or flow.startswith(REGISTERED):
        return config
    digest = load_card(flow)["digest"]
    _check_digest(config, flow, digest)
    return config.model_copy(update={"flow_digest": digest})


def keep(content: bytes, digest: str, storage: str) -> None:
    """Puts a registered flow's file into a run's storage; raises OutputError."""
    _kept(storage).write(f"{digest}.safetensors", content)


def open_flow(config: RunConfig, flow: str, *, device: torch.device | str = "cpu") -> Flow:
    """The flow that a config's reference means: a shipped name, a file, or what was kept of a registered one.

    Raises:
        FlowError: it is missing, damaged, or not the one of `flow_digest`.
    """
    content = _kept(config.storage).read(f"{config.flow_digest}.safetensors") if flow.startswith(REGISTERED) else None
    loaded = load_flow(flow, device=device) if content is None else read_flow(content, flow, device=device)
    _check_digest(config, flow, loaded.digest)
    return loaded


def _check_digest(config: RunConfig, flow: str, digest: str) -> None:
    if config.flow_digest not in (None, digest):
        raise FlowError(
            f"flow {flow} has digest {digest[:16]}, and flow_digest asks for {str(config.flow_digest)[:16]}",
            "bits of two flows are not compared: give the flow of that digest, or leave flow_digest out",
        )


def _kept(storage: str) -> Storage:
    return Storage(below(storage, "flows"))
