"""`condense bits` of a registered version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.registry import register
from condense.parquet import CondensedDataset, write_dataset
from tests.cluster.test_tracking import new_run
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
