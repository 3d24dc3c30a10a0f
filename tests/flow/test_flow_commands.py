"""`condense flow fit`, `flow list`, `flow show`, and what they answer to bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from condense.flow.architecture import FlowDescription
from condense.flow.registry import build
from condense.flow.store import load_card, save_flow
from tests.builders.fits import pictures_in
from tests.conftest import QUICKSTART, TINY, Command, Outcome

RECIPE = {
    "name": "tiny",
    "source": "digits",
    "architecture": {"channels": 1, "image_size": 16, "levels": 2, "steps": 1, "hidden": 4, "components": 2},
    "steps": 3,
    "batch_size": 8,
    "initial_images": 32,
    "evaluation_images": 8,
    "tracking_uri": "none",
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def refused(outcome: Outcome, *named: str) -> None:
    """One message on standard error that names these, and exit code 2."""
    assert outcome.code == 2
    assert outcome.err.startswith("error ")
    assert "Traceback" not in outcome.err
    for text in named:
        assert text in outcome.err


def test_fit_says_what_it_made_and_how_to_use_it(condense: Command, recipe: Path, tmp_path: Path) -> None:
    outcome = condense("flow", "fit", recipe)
    assert outcome.code == 0
    card = load_card(tmp_path / "flow.safetensors")
    for text in (card["digest"][:12], f"{card['parameters']:,}", f"{card['held_out']['digits']['bits_per_dim']:.3f}"):
        assert text in outcome.out
    assert "held_out_bits_per_dim" in outcome.out
    assert outcome.out.splitlines()[-1] == "use it   condense run CONFIG flow=flow.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.safetensors", "recipe.yaml"]
    shown = condense("flow", "show", "flow.safetensors")
    assert card["digest"] in shown.out


@pytest.mark.mlflow
def test_a_tracked_fit_names_its_version_and_is_listed(condense: Command, recipe: Path) -> None:
    outcome = condense("flow", "fit", recipe, "tracking_uri=sqlite:///mlflow.db")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "use it   condense run CONFIG flow=models:/flow-tiny@best"
    listed = condense("flow", "list")
    for text in ("grey32", "rgb32", "models:/flow-tiny/1", "best", "1x16x16"):
        assert text in listed.out
    run = condense("run", QUICKSTART, *TINY, "tracking_uri=sqlite:///mlflow.db", "flow=models:/flow-tiny@best")
    assert run.code == 0
    measured = condense("bits", "digits", "--flow", "models:/flow-tiny@best", "--limit", 20)
    assert measured.code == 0
    assert "flow-tiny-1" in measured.out
    refused(condense("flow", "show", "models:/flow-absent@best"), "flow-absent", "flow-tiny")


BAD_RECIPES = {
    "architecture.image_size=24": ("architecture.image_size", "16, 32, 64 or 128"),
    "architecture.channels=2": ("architecture.channels", "1 or 3"),
    "architecture.channels=3": ("digits", "architecture.channels=1"),
    "architecture.levels=4": ("architecture", "take fewer"),
    "source=folder:grey": ("folder:grey", "one grey level"),
    "source=folder:absent": ("absent",),
    "start_from=absent.safetensors": ("absent.safetensors",),
    "output=recipe.yaml/flow.safetensors": ("recipe.yaml",),
    "step=3": ("step", "did you mean 'steps'?"),
    "name=a/b": ("name", "a/b"),
    "workers=9": ("workers <= batch_size",),
}


@pytest.mark.parametrize("override", BAD_RECIPES)
def test_a_bad_recipe(override: str, condense: Command, recipe: Path, tmp_path: Path) -> None:
    pictures_in(tmp_path / "grey", np.full((40, 16, 16, 3), 77))
    refused(condense("flow", "fit", recipe, override), *BAD_RECIPES[override])
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_flow_that_is_no_density(condense: Command, tmp_path: Path) -> None:
    flow = build(FlowDescription(channels=1, image_size=16, levels=2, steps=1, hidden=4, components=2))
    flow.levels[0].steps[0].mixing.permutation.mul_(2)
    save_flow(flow, tmp_path / "stranger.safetensors", {})
    refused(condense("run", QUICKSTART, *TINY, "flow=stranger.safetensors"), "stranger.safetensors", "not normalised")
    refused(condense("bits", "digits", "--flow", "stranger.safetensors"), "stranger.safetensors", "not normalised")


def test_a_registered_flow_without_a_registry(condense: Command) -> None:
    refused(condense("run", QUICKSTART, *TINY, "flow=models:/flow-x@best"), "models:/flow-x@best", "tracking_uri")
