"""Trials that are Ray Train runs: several side by side, the rest waiting, each in the end a registered version."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from cluster import registry
from cluster.tracking_store import connect
from condense.condensation.config import RunConfig
from condense.settings import validate
from condense.synthetic.dataset import read_dataset
from tests.builders.runs import run as run_alone
from tests.builders.searches import TINY
from tuning.journal import EVENTS
from tuning.search import run
from tuning.space import SearchConfig


@pytest.mark.ray
@pytest.mark.mlflow
@pytest.mark.slow
def test_trials_with_workers_run_two_at_a_time_and_the_third_starts_from_a_neighbour(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    places = {"tracking_uri": uri, "output": str(tmp_path / "sets"), "storage": str(tmp_path / "runs"), "workers": 1}
    search = SearchConfig.model_validate(
        {
            "name": "side",
            "base": {**TINY, "outer_steps": 4, "evaluation": {**TINY["evaluation"], "every": 2}, **places},
            "space": {"bits_weight": {"choice": [5.0, 10.0, 20.0]}},
            "sampler": "grid",
            "trials": 3,
            "early_stopping": None,
            "warm_start": {},
            "storage": tmp_path,
        }
    )
    most = 0

    def changed(journal: Any) -> None:
        nonlocal most
        most = max(most, len(journal.by_status("running")))

    outcome = run(search, changed=changed)
    events = [json.loads(line) for line in (tmp_path / "side" / EVENTS).read_text().splitlines()]
    began = {event["trial"]: event["time"] for event in events if event["event"] == "started"}
    ended = {event["trial"]: event["time"] for event in events if event["event"] == "finished"}
    assert sorted(ended) == [0, 1, 2]
    assert most == 2
    assert any(began[b] < ended[a] and began[a] < ended[b] for a, b in itertools.combinations(range(3), 2))
    assert began[2] > min(ended[0], ended[1])

    versions = {version.run_id: version for version in registry.list_datasets(uri)}
    results = {event["trial"]: event["result"] for event in events if event["event"] == "finished"}
    assert len(versions) == 3
    assert set(versions) == {result["run_id"] for result in results.values()}
    assert {version.version for version in versions.values() if version.tags.get("pareto") == "true"} == {
        member.result["version"] for member in outcome.members
    }

    # The last trial says what it started from, in the journal, in MLflow and in its file, and the file remakes it.
    (start,) = [event["start"] for event in events if event["event"] == "suggested" and "start" in event]
    neighbour = results[start["trial"]]
    params = connect(uri).get_run(results[2]["run_id"]).data.params
    assert params["images.init_digest"] == start["digest"] == versions[neighbour["run_id"]].content_digest
    made = read_dataset(Path(results[2]["folder"]) / "data.parquet")
    config = validate(RunConfig, made.provenance["config"], where="the set's config")
    assert config.images.init_digest == start["digest"]
    assert (config.outer_steps, config.workers) == (2, 1)
    assert run_alone(config).provenance["content_digest"] == made.provenance["content_digest"]
    points = [event for event in events if event["event"] == "point" and event["trial"] == 2]
    assert points[-1]["step"] == 4
