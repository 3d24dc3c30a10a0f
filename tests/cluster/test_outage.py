"""A tracking store that is away when a run ends: nothing is lost, and one command finishes what is left."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import cluster.run
import cluster.tracking
from cluster.registry import show
from cluster.tracking_store import SQLITE, connect
from condense.condensation.config import RunConfig
from condense.errors import TrackingError
from condense.settings import resolve
from condense.workers.context import Progress
from tests.builders.runs import TINY

pytestmark = pytest.mark.mlflow


def test_a_run_whose_store_is_away_at_its_end_is_registered_later_by_one_command(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.run, "REGISTER_PATIENCE_S", 2.0)
    monkeypatch.setattr(cluster.tracking, "CLOSE_PATIENCE_S", 0.0)
    places = [f"output={tmp_path}/condensed", f"storage={tmp_path}/runs", f"tracking_uri={tracking_uri}"]
    config = resolve(RunConfig, None, [*TINY, *places, "workers=0", "evaluation.controls=false", "name=outage"])
    with closing(sqlite3.connect(tracking_uri.removeprefix(SQLITE), check_same_thread=False)) as database:

        def lock(at: Progress) -> None:
            if at.stage == "condensing" and at.done == 3 and not database.in_transaction:
                database.execute("BEGIN EXCLUSIVE")  # nobody reads or writes it now

        with pytest.raises(TrackingError, match="condense datasets register") as caught:
            cluster.run.run(config, lock)
        database.rollback()
    (folder,) = (tmp_path / "condensed").iterdir()
    assert str(folder) in caught.value.remedy
    assert (folder / "data.parquet").is_file()
    (spool,) = (tmp_path / "runs").glob("*.spool.jsonl")
    assert spool.stat().st_size > 0

    for _ in range(2):
        version = cluster.run.register_folder(tracking_uri, folder)
        assert show(tracking_uri, "outage").run_id == version.run_id
    assert version.version == 1
    assert "best" in show(tracking_uri, "outage").aliases
    found = connect(tracking_uri).get_run(version.run_id)
    assert found.info.status == "FINISHED"
    history = connect(tracking_uri).get_metric_history(version.run_id, "validation/accuracy")
    assert [point.step for point in history] == [2, 4]
    assert "test/accuracy" in found.data.metrics
    assert not spool.exists()
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
