"""`ray job submit` to a real cluster of several nodes with token authentication, as a user would: its own commands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.tracking_store import connect
from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.settings import resolve
from condense.synthetic.dataset import read_dataset
from condense.workers.checkpoints import NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import WorkerContext
from condense.workers.tracking import NullTracker
from tests.builders.local_cluster import BIN, START_S, RayCluster, end, local_cluster, until
from tests.builders.sources import rows, write_hub

pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]

STEPS = 1500  # so many that a run on idle cores is not over before its node is
CONFIG = f"""
source: parquet:pets_train.parquet
data: {{image_size: 16}}
network: {{name: mlp, width: 16, depth: 1}}
matching: {{real_batch: 8, updates: 1, inner_epochs: 2}}
evaluation: {{every: {STEPS}, learners: 1, validation_images: 10, controls: false}}
outer_steps: {STEPS}
checkpoint_every: 1
workers: 1
cpus_per_worker: 1
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with local_cluster() as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What a user ships: a config and the data beside it."""
    folder = tmp_path / "project"
    write_hub(folder / "pets_train.parquet", rows(60), [row % 2 for row in range(60)])
    write_hub(folder / "pets_test.parquet", rows(10, start=60), [0, 1] * 5)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def undisturbed(project: Path) -> str:
    """The digest of the same run in this process."""
    config = resolve(RunConfig, project / "config.yaml", [f"source=parquet:{project}/pets_train.parquet"])
    context = WorkerContext(Alone(), NullTracker(), NoCheckpoints(), lambda at: None, torch_cpu())
    return str(condense(config, context).provenance["content_digest"])


def torch_cpu():  # type: ignore[no-untyped-def]
    import torch

    torch.set_num_threads(1)
    return torch.device("cpu")


def test_who_has_no_token_or_a_wrong_one_is_refused(cluster: RayCluster) -> None:
    for token in ("", "0" * 64):
        outcome = cluster.submit("--", "true", RAY_AUTH_TOKEN=token, HOME=str(cluster.folder))
        assert outcome.returncode != 0
        assert "authentication token" in outcome.stdout + outcome.stderr


def test_a_job_that_cannot_run_fails_with_its_error_in_the_log(cluster: RayCluster, project: Path) -> None:
    outcome = cluster.submit("--working-dir", str(project), "--", "condense", "run", "config.yaml")
    assert outcome.returncode == 1
    assert "output=condensed is a folder of this job" in outcome.stdout


def test_a_job_that_was_stopped_and_then_lost_its_node_ends_as_an_undisturbed_run_does(
    cluster: RayCluster, project: Path, tmp_path: Path, tracking_uri: str
) -> None:
    from ray.job_submission import JobSubmissionClient

    jobs = JobSubmissionClient(cluster.address, headers={"Authorization": f"Bearer {cluster.token}"})  # quick to ask
    node = cluster.join()
    places = [f"output={tmp_path}/condensed", f"storage={tmp_path}/runs", f"tracking_uri={tracking_uri}"]
    run = ["--working-dir", str(project), "--", "condense", "run", "config.yaml", *places]

    def steps() -> list[int]:
        return sorted(int(file.stem.removeprefix("step-")) for file in tmp_path.glob("runs/*/step-*"))

    cluster.submit("--no-wait", "--submission-id", "first", *run)
    until(lambda: len(steps()) == 2)
    assert jobs.stop_job("first")
    until(lambda: jobs.get_job_status("first").is_terminal())
    assert jobs.get_job_status("first") == "STOPPED"
    reached = steps()[-1]
    stopped = cluster.ray("job", "logs", "--address", cluster.address, "first").stdout
    assert f"of {STEPS}; the same command goes on" in stopped.splitlines()[-1], stopped
    assert reached < STEPS
    assert not list(tmp_path.glob("condensed/*/data.parquet"))

    second = subprocess.Popen(
        [BIN / "ray", "job", "submit", "--address", cluster.address, *run],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: second.poll() is not None or (steps() and steps()[-1] > reached))
    end(node)
    after = steps()[-1]
    assert after < STEPS
    cluster.join()
    log, _ = second.communicate(timeout=START_S)
    assert second.returncode == 0, log
    assert f"going on at step {reached} of {STEPS}\n" in log
    assert f"condensing 1/{STEPS}" not in log
    assert f"condensing {STEPS}/{STEPS}" in log
    assert "condensed set" in log
    (made,) = tmp_path.glob("condensed/*/data.parquet")
    assert read_dataset(made).provenance["content_digest"] == undisturbed(project)
    (found,) = connect(tracking_uri).search_runs(
        [connect(tracking_uri).get_experiment_by_name("condense").experiment_id],
        "params.source = 'parquet:pets_train.parquet'",
    )
    assert found.info.status == "FINISHED"
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
