"""Holds a job to one flow: finds it by its reference, and by the digest that the job began with.

The identity of a job has the digest of its flow and not its reference. So `flow=grey32` of another version of this
package, a file that was trained again, or an alias `@best` that moved make another job. A job that was begun never goes
on with another yardstick.

A flow in MLflow's registry is brought to the job's storage, under its digest, by the layer that knows MLflow. Every
worker finds it there.
"""

from __future__ import annotations

from typing import Protocol

import torch

from condense.errors import FlowError
from condense.flow.architecture import Flow
from condense.flow.store import REGISTERED, load_card, load_flow, read_flow
from condense.workers.storage import Storage, below


class FlowChoice(Protocol):
    """The settings of a job that name its flow."""

    @property
    def flow_digest(self) -> str | None:
        """The digest that the flow must have; None accepts any."""

    @property
    def storage(self) -> str:
        """The folder or store that all workers share."""


def flow_digest_of(config: FlowChoice, flow: str) -> str | None:
    """Returns the digest of the flow that a reference means; for a registered flow the one that the config has.

    Raises:
        FlowError: it is not the one of `flow_digest`, or it cannot be read.
    """
    if flow.startswith(REGISTERED):
        return config.flow_digest
    digest = str(load_card(flow)["digest"])
    _check_digest(config, flow, digest)
    return digest


def keep_flow(content: bytes, digest: str, storage: str) -> None:
    """Puts the file of a registered flow into a job's storage; raises OutputError."""
    _kept(storage).write(f"{digest}.safetensors", content)


def open_flow(config: FlowChoice, flow: str, *, device: torch.device | str = "cpu") -> Flow:
    """Returns the flow that a reference means: a shipped name, a file, or what was kept of a registered one.

    Raises:
        FlowError: it is missing, damaged, or not the one of `flow_digest`.
    """
    content = _kept(config.storage).read(f"{config.flow_digest}.safetensors") if flow.startswith(REGISTERED) else None
    loaded = load_flow(flow, device=device) if content is None else read_flow(content, flow, device=device)
    _check_digest(config, flow, loaded.digest)
    return loaded


def _check_digest(config: FlowChoice, flow: str, digest: str) -> None:
    if config.flow_digest not in (None, digest):
        raise FlowError(
            f"flow {flow} has digest {digest[:16]}, and flow_digest asks for {str(config.flow_digest)[:16]}",
            "bits of two flows are not compared: give the flow of that digest, or leave flow_digest out",
        )


def _kept(storage: str) -> Storage:
    return Storage(below(storage, "flows"))
