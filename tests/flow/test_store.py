from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from condense.errors import FlowError, OutputError
from condense.files import read_tensors, write_tensors
from condense.flow.architecture import Flow, FlowDescription
from condense.flow.probe import log_determinant_error
from condense.flow.store import CHECKSUM, FORMAT, flow_for, load_card, load_flow, save_flow
from tests.builders.flows import DESCRIPTIONS, pictures, tiny_flow


@pytest.fixture
def flow() -> Flow:
    return tiny_flow(DESCRIPTIONS["grey"]).float()


@pytest.fixture
def stored(flow: Flow, tmp_path: Path) -> Path:
    save_flow(flow, tmp_path / "flow.safetensors", {"name": "tiny"})
    return tmp_path / "flow.safetensors"


def rewritten(path: Path, **header: object) -> Path:
    tensors, old = read_tensors(path)
    del old[CHECKSUM]  # as somebody else's program writes it
    write_tensors(path, tensors, {**old, **header})
    return path


def test_a_loaded_flow_is_the_stored_one_and_frozen(flow: Flow, stored: Path) -> None:
    loaded = load_flow(stored)
    x = pictures(flow)
    torch.testing.assert_close(loaded.log_prob(x), flow.log_prob(x).detach(), rtol=0, atol=1e-5 * x[0].numel())
    assert loaded.digest == flow.digest == load_card(stored)["digest"]
    assert load_card(stored)["name"] == "tiny"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_storing_again_gives_the_same_bytes(stored: Path, tmp_path: Path) -> None:
    save_flow(load_flow(stored), tmp_path / "again.safetensors", {"name": "tiny"})
    assert (tmp_path / "again.safetensors").read_bytes() == stored.read_bytes()


def test_a_card_with_one_changed_letter_is_refused(stored: Path) -> None:
    content = stored.read_bytes()
    assert content.count(b"tiny") == 1
    stored.write_bytes(content.replace(b"tiny", b"tinx"))
    for read in (load_card, load_flow):
        with pytest.raises(FlowError, match=f"{stored.name} is damaged: its card"):
            read(stored)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_error(stored: Path, kept: float) -> None:
    data = stored.read_bytes()
    stored.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(FlowError, match=r"flow\.safetensors"):
        load_flow(stored)


@pytest.mark.parametrize("place", [-1, -5000])
def test_an_altered_weight_is_an_error(stored: Path, place: int) -> None:
    data = bytearray(stored.read_bytes())
    data[place] ^= 1
    stored.write_bytes(bytes(data))
    with pytest.raises(FlowError, match="digest"):
        load_flow(stored)


def test_a_newer_format_asks_for_an_update(stored: Path) -> None:
    with pytest.raises(FlowError, match="update condense-service"):
        load_flow(rewritten(stored, format=FORMAT + 1))


def test_weights_of_another_architecture_are_an_error(stored: Path) -> None:
    other = FlowDescription(channels=1, image_size=16, levels=3, steps=2, hidden=5)
    with pytest.raises(FlowError, match=r"tensor .* should be"):
        load_flow(rewritten(stored, description=other.model_dump()))


def test_a_description_that_this_version_does_not_know_is_an_error(stored: Path) -> None:
    with pytest.raises(FlowError, match="no description of a flow"):
        load_flow(rewritten(stored, description={"channels": 1, "attention": True}))


def test_a_foreign_safetensors_file_is_an_error(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FlowError, match="no Condense header"):
        load_flow(tmp_path / "other.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "list.safetensors", {"condense": json.dumps([])})
    with pytest.raises(FlowError, match="no Condense header"):
        load_flow(tmp_path / "list.safetensors")


def test_a_flow_that_is_not_a_number_is_refused(flow: Flow, tmp_path: Path) -> None:
    with torch.no_grad():
        next(iter(flow.parameters())).fill_(float("nan"))
    save_flow(flow, tmp_path / "nan.safetensors", {})
    with pytest.raises(FlowError, match="not exact"):
        load_flow(tmp_path / "nan.safetensors")


UNFAITHFUL = {
    "singular mixing": (lambda mixing: mixing.log_diagonal.__setitem__(0, -60.0), "come back|finite"),
    "a mixing that is nowhere": (lambda mixing: mixing.permutation.zero_(), "come back"),
    "an infinite scale": (lambda mixing: mixing.log_scale.__setitem__(0, float("inf")), "not finite"),
    "a permutation that is none": (lambda mixing: mixing.permutation.mul_(1.01), "not normalised"),
    "signs that are none": (lambda mixing: mixing.signs.mul_(2.0), "not normalised"),
}


@pytest.mark.parametrize("case", UNFAITHFUL)
def test_weights_that_make_no_density_are_refused(case: str, flow: Flow, tmp_path: Path) -> None:
    alter, message = UNFAITHFUL[case]
    with torch.no_grad():
        alter(flow.levels[1].steps[1].mixing)
    save_flow(flow, tmp_path / "altered.safetensors", {})  # with a digest that fits
    with pytest.raises(FlowError, match=rf"altered\.safetensors is not exact: .*({message})"):
        load_flow(tmp_path / "altered.safetensors")


def test_float32_that_cannot_hold_the_bits_is_refused(flow: Flow, tmp_path: Path) -> None:
    with torch.no_grad():
        flow.levels[0].steps[0].mixing.mean.fill_(1e6)
    save_flow(flow, tmp_path / "far.safetensors", {})
    with pytest.raises(FlowError, match="not exact"):
        load_flow(tmp_path / "far.safetensors")


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_the_log_determinant_probe_agrees_with_exact_flows(name: str) -> None:
    flow = tiny_flow(DESCRIPTIONS[name])
    assert log_determinant_error(flow, pictures(flow, 1)) < 1e-12


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(FlowError, match="grey32"):
        load_flow("rgb64")


def test_shapes_without_a_shipped_flow_say_what_to_do() -> None:
    with pytest.raises(FlowError, match="condense flow fit"):
        flow_for((1, 64, 64))


def test_an_unwritable_place_is_an_output_error(flow: Flow, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_flow(flow, tmp_path / "file" / "flow.safetensors", {})
