"""Stores flows on disk: one safetensors file, whose header has the description, the card and the digest as JSON.

Nothing in such a file runs. What is loaded has been checked: the version of the format, every tensor's name and shape
against the description, the digest over description and bytes, and the flow's exactness on probes (probe.py).
"""

from __future__ import annotations

import copy
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condense.errors import ConfigError, FlowError, OutputError
from condense.files import check_folder_writable, json_checksum, unpack_tensors, write_tensors
from condense.flow.architecture import Flow, FlowDescription, tensors_digest
from condense.flow.probe import check_exact
from condense.flow.registry import build
from condense.settings import validate

FORMAT = 1
CHECKSUM = "checksum"  # of the rest of the header; the digest is of what the flow computes
REGISTERED = "models:/"  # how a reference to a flow in MLflow's registry starts; see pinning.py


def save_flow(flow: Flow, path: Path, card: dict[str, Any]) -> str:
    """Writes the flow and its card; returns its digest. The file appears complete or not at all.

    Args:
        flow: of any device; stored as float32.
        path: ends in .safetensors.
        card: plain JSON values: recipe, sources, held-out bits.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in flow.state_dict().items()}
    description = flow.description.plain()
    digest = tensors_digest(description, tensors)
    header = {"format": FORMAT, "description": description, "card": card, "digest": digest}
    write_tensors(path, tensors, header | {CHECKSUM: json_checksum(header)})
    return digest


def load_flow(name_or_path: str | Path, *, device: torch.device | str = "cpu") -> Flow:
    """Returns a stored flow, frozen, after every check that the module docstring lists.

    Args:
        name_or_path: a shipped flow's name (see `shipped_flows`) or a file.
        device: where it goes.

    Raises:
        FlowError: naming the file and what is wrong with it.
    """
    path = _locate(name_or_path)
    return read_flow(_content(path), str(path), device=device)


def read_flow(content: bytes, where: str, *, device: torch.device | str = "cpu") -> Flow:
    """`load_flow` of a file's content; `where` names it in errors."""
    tensors, header = _read(content, where)
    try:
        description = validate(FlowDescription, header["description"], where=f"flow file {where}")
    except ConfigError as error:
        raise FlowError(f"{error.problem} is no description of a flow", error.remedy) from None
    flow = build(description)
    expected = {name: tuple(tensor.shape) for name, tensor in flow.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))[0]
        raise FlowError(
            f"flow file {where}: tensor {wrong!r} should be {expected.get(wrong)}, is {found.get(wrong)}",
            "the file was not written by save_flow for this description; take another copy",
        )
    if tensors_digest(description.plain(), tensors) != header["digest"]:
        raise FlowError(
            f"flow file {where} does not have the digest that it states", "it was altered: take another copy"
        )
    flow.load_state_dict(tensors)
    exact = copy.deepcopy(flow).double().to(device)
    flow.to(device).freeze_()
    check_exact(flow, exact, where)
    return flow


def load_card(name_or_path: str | Path) -> dict[str, Any]:
    """Returns the card of a stored flow, with its description and digest under keys of these names.

    Raises:
        FlowError: the file is missing, damaged or newer than this version.
    """
    path = _locate(name_or_path)
    header = _read(_content(path), str(path))[1]
    return {**header["card"], "description": header["description"], "digest": header["digest"]}


def shipped_flows() -> tuple[str, ...]:
    """Returns names of the yardsticks inside the package."""
    return tuple(sorted(path.stem for path in _yardsticks().glob("*.safetensors")))


def flow_for(shape: tuple[int, int, int]) -> str:
    """Name of the shipped yardstick for images of shape (C, H, W).

    Raises:
        FlowError: none fits.
    """
    fitting = {}
    for name in shipped_flows():
        description = load_card(name)["description"]
        side = description["image_size"]
        fitting[name] = (description["channels"], side, side)
        if fitting[name] == tuple(shape):
            return name
    known = ", ".join(f"{name} {size}" for name, size in fitting.items())
    raise FlowError(
        f"no shipped flow measures images of shape {tuple(shape)}; there is: {known}",
        "set data.image_size=32, or train one with condense flow fit (architecture.image_size and .channels)",
    )


def check_writable(path: Path) -> None:
    """Raises OutputError now where `save_flow` to this path would raise it after the work is done."""
    check_folder_writable(path.parent)
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "give the path of a file, ending in .safetensors")


def _yardsticks() -> Path:
    return Path(str(resources.files("condense.flow"))) / "yardsticks"


def _locate(name_or_path: str | Path) -> Path:
    shipped = shipped_flows()
    if str(name_or_path) in shipped:
        return _yardsticks() / f"{name_or_path}.safetensors"
    if str(name_or_path).startswith(REGISTERED):
        raise FlowError(
            f"flow {str(name_or_path)!r} is in MLflow's registry, and this run has none",
            "set tracking_uri to the registry's (it needs condense-service[cluster]), or give a file",
        )
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise FlowError(
            f"flow {str(name_or_path)!r} is neither a shipped name nor a file",
            f"shipped: {', '.join(shipped)}; or give the path of a .safetensors file that condense flow fit wrote",
        )
    return path


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FlowError(f"flow file {path} cannot be read: {error}") from None


def _read(content: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, header = unpack_tensors(content)
    except ValueError as error:
        raise FlowError(f"flow file {where} {error}", "take another copy of it") from None
    stated = header.pop(CHECKSUM, None)  # flows of version 0.1.0 have none
    if stated not in (None, json_checksum(header)):
        raise FlowError(f"flow file {where} is damaged: its card is not as it was written", "take another copy of it")
    version = header.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FlowError(
            f"flow file {where} has format {version}; this version reads up to {FORMAT}", "update condense-service"
        )
    if version != FORMAT or not {"description", "card", "digest"} <= header.keys():
        raise FlowError(f"flow file {where} holds no flow", "give a file that condense flow fit wrote")
    return tensors, header
