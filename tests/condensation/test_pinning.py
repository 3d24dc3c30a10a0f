"""A run is held to the flow that it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

from condense import api
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.pinning import pin
from condense.errors import FlowError
from condense.flow.architecture import FlowDescription
from condense.flow.pinning import keep_flow, open_flow
from condense.flow.registry import build
from condense.flow.store import load_card, save_flow
from condense.settings import resolve
from condense.workers.context import Progress

FLOW = FlowDescription(channels=1, image_size=16, levels=2, steps=1, hidden=4, components=2)
RUN = (
    "images_per_class=1",
    "data.image_size=16",
    "network.name=mlp",
    "network.width=8",
    "network.depth=1",
    "matching.real_batch=4",
    "outer_steps=1",
    "evaluation.learners=1",
    "evaluation.validation_images=10",
    "evaluation.controls=false",
    "workers=0",
    "tracking_uri=none",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return stored(tmp_path / "flow.safetensors")


def stored(path: Path) -> Path:
    """A flow with other weights at each call."""
    save_flow(build(FLOW), path, {"name": "tiny"})
    return path


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    places = (f"storage={tmp_path / 'runs'}", f"output={tmp_path / 'out'}")
    return resolve(RunConfig, None, (*RUN, *places, *overrides))


def identity(of: RunConfig) -> str:
    return pin(of, open_checked(of)[1]).identity()


def test_a_run_is_the_same_wherever_its_flow_lies_and_another_with_another_flow(file: Path, tmp_path: Path) -> None:
    asked = config(tmp_path, f"flow={file}")
    first = identity(asked)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert identity(config(tmp_path, f"flow={copy}")) == first
    stored(file)  # trained again, at the same path
    assert identity(asked) != first


def test_a_shipped_flow_is_pinned_too(tmp_path: Path) -> None:
    asked = config(tmp_path, "data.image_size=32")
    _, flow = open_checked(asked)
    assert pin(asked, flow).flow_digest == load_card("grey32")["digest"]


def test_without_a_flow_nothing_is_pinned(tmp_path: Path) -> None:
    asked = config(tmp_path)
    assert pin(asked, open_checked(asked)[1]) == asked


def test_a_run_states_the_digest_and_its_config_makes_the_same_run_again(file: Path, tmp_path: Path) -> None:
    dataset = api.run(config(tmp_path, f"flow={file}")).dataset
    facts = dataset.provenance
    assert facts["flow"] == {"name": str(file), "digest": load_card(file)["digest"]}
    again = RunConfig.model_validate(facts["config"])
    assert again.flow_digest == facts["flow"]["digest"]
    assert identity(again) == facts["identity"]


def test_another_flow_than_flow_digest_asks_for_is_refused(file: Path, tmp_path: Path) -> None:
    def never(at: Progress) -> None:
        raise AssertionError(at)

    for flow in (file, "grey32"):
        size = 32 if flow == "grey32" else 16
        asked = config(tmp_path, f"flow={flow}", f"data.image_size={size}", f"flow_digest={'f' * 64}")
        with pytest.raises(FlowError, match=rf"{flow} has digest .* asks for ffff"):
            api.run(asked, progress=never)
    assert not (tmp_path / "runs").exists()


def test_a_registered_flow_is_found_in_the_runs_storage(file: Path, tmp_path: Path) -> None:
    digest = load_card(file)["digest"]
    asked = config(tmp_path, "flow=models:/flow-tiny/3", f"flow_digest={digest}")
    with pytest.raises(FlowError, match=r"in MLflow's registry.*\n.*tracking_uri"):
        open_flow(asked, asked.flow)
    keep_flow(file.read_bytes(), digest, asked.storage)
    assert open_flow(asked, asked.flow).digest == digest
    assert open_checked(asked)[1] == "models:/flow-tiny/3"


def test_what_was_kept_of_a_registered_flow_is_checked(file: Path, tmp_path: Path) -> None:
    digest = load_card(file)["digest"]
    asked = config(tmp_path, "flow=models:/flow-tiny/3", f"flow_digest={digest}")
    keep_flow(file.read_bytes()[:-8], digest, asked.storage)
    with pytest.raises(FlowError, match="flow file models:/flow-tiny/3 is damaged"):
        open_flow(asked, asked.flow)
    other = stored(tmp_path / "other.safetensors")
    keep_flow(other.read_bytes(), digest, asked.storage)
    with pytest.raises(FlowError, match="flow_digest asks for"):
        open_flow(asked, asked.flow)
