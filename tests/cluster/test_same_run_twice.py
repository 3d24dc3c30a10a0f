"""The same run twice at the same time: each logs its own steps once, and both end with the same dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

import cluster.run
from cluster.spool import Claim
from cluster.tracking_store import connect
from condense.condensation.config import RunConfig
from condense.settings import resolve
from condense.workers.context import Progress
from tests.builders.runs import TINY

pytestmark = pytest.mark.mlflow


def test_a_run_that_is_at_work_in_another_process_is_logged_apart(tracking_uri: str, tmp_path: Path) -> None:
    places = [f"output={tmp_path}/condensed", f"storage={tmp_path}/runs", f"tracking_uri={tracking_uri}"]
    settings = ["evaluation.every=1", "evaluation.controls=false", "workers=0", "name=twice"]
    config = resolve(RunConfig, None, [*TINY, *places, *settings])
    others = list[cluster.run.Finished]()

    def run_beside(at: Progress) -> None:
        if at.stage == "condensing" and at.done == 2 and not others:
            others.append(cluster.run.run(config, lambda at: None))

    first = cluster.run.run(config, run_beside)
    (second,) = others
    assert first.dataset.provenance["content_digest"] == second.dataset.provenance["content_digest"]
    assert first.run_id != second.run_id
    client = connect(tracking_uri)
    for finished in (first, second):
        assert finished.run_id is not None
        steps = [point.step for point in client.get_metric_history(finished.run_id, "validation/accuracy")]
        assert steps, finished
        assert steps == sorted(set(steps))
        assert client.get_run(finished.run_id).info.status == "FINISHED"
    assert first.version is not None
    assert second.version is not None
    assert first.version.reference == second.version.reference
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".lock", ".jsonl")]


def test_a_claim_is_free_again_after_its_holder(tmp_path: Path) -> None:
    spool = tmp_path / "runs" / "a.spool.jsonl"
    first, second = Claim(spool), Claim(spool)
    assert (first.held, second.held) == (True, False)
    second.release()
    assert not Claim(spool).held
    first.release()
    assert not spool.parent.joinpath("a.spool.lock").exists()
    assert Claim(spool).held
