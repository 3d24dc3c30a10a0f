"""`condense bits` of a registered dataset, and under a registered flow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.flows import register_flow
from cluster.registry import register
from condense.flow.fit import FitResult
from condense.flow.store import save_flow
from condense.synthetic.dataset import CondensedDataset, write_dataset
from tests.builders.commands import refused
from tests.builders.flows import DESCRIPTIONS, tiny_flow
from tests.builders.mlflow_runs import new_run
from tests.conftest import Command

pytestmark = pytest.mark.mlflow


def test_a_registered_set_is_measured_by_its_name(tracking_uri: str, condense: Command, tmp_path: Path) -> None:
    images = torch.full((2, 1, 32, 32), 200, dtype=torch.uint8)
    made = tmp_path / "made"
    made.mkdir()
    write_dataset(made / "data.parquet", CondensedDataset(images, torch.tensor([0, 1]), ("one", "two"), None, None))
    version = register(tracking_uri, new_run(tracking_uri), "flat", made, {"content_digest": "flat"})
    shown = condense("bits", version.reference, "--tracking-uri", tracking_uri, "-o", "out")
    assert shown.code == 0, shown.err
    assert f"{version.reference} under grey32" in shown.out
    assert (tmp_path / "out" / "map.png").exists()


def test_a_registered_flow_measures_by_its_name(tracking_uri: str, condense: Command, tmp_path: Path) -> None:
    card = {
        "name": "tiny",
        "sources": {"made": "up"},
        "parameters": 1,
        "cpu_seconds": 1.0,
        "curve": [{"bits_per_dim": 9.0}],
    }
    path = tmp_path / "tiny.safetensors"
    digest = save_flow(tiny_flow(DESCRIPTIONS["grey"]).float(), path, card)
    register_flow(tracking_uri, new_run(tracking_uri), FitResult(path, digest, card))
    asked = ("bits", "digits", "--limit", 5, "--tracking-uri", tracking_uri)
    shown = condense(*asked, "--flow", "models:/flow-tiny@best")
    assert shown.code == 0, shown.err
    assert f"digits under flow-tiny-1 ({digest[:12]})" in shown.out
    refused(condense(*asked, "--flow", "models:/flow-absent@best"), "flow-absent")
