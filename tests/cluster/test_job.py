"""`ray job submit` to a real cluster of several nodes with token authentication, as a user would: its own commands."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.store import connect
from condense.checkpoints import NoCheckpoints
from condense.collective import Alone
from condense.condensation import condense
from condense.config import RunConfig
from condense.parquet import read_dataset
from condense.settings import resolve
from condense.surroundings import Surroundings
from condense.tracking import NullTracker
from tests.test_sources import rows, write_hub

pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]

BIN = Path(sys.executable).parent
START_S = 600.0  # a busy machine

CONFIG = """
source: parquet:pets_train.parquet
data: {image_size: 16}
network: {name: mlp, width: 16, depth: 1}
matching: {real_batch: 8, updates: 1, inner_epochs: 2}
evaluation: {every: 400, learners: 1, validation_images: 10, controls: false}
outer_steps: 400
checkpoint_every: 1
workers: 1
cpus_per_worker: 1
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RayCluster:
    """A head without CPUs, whose address and token nobody else has, and nodes that come and go."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the cluster and of those whom it lets in."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
            "RAY_health_check_period_ms": "1000",
            "RAY_worker_niceness": "0",  # by default workers give way to everything else on the machine
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={free_port()}", *options]
        log = (self.folder / f"node{len(self.nodes)}.log").open("wb")
        node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        return node

    def head(self) -> None:
        options = [f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        node = self.start("--head", "--num-cpus=0", *options)
        until(lambda: self.ray("job", "list", "--address", self.address).returncode == 0 or node.poll() is not None)

    def join(self) -> subprocess.Popen[bytes]:
        """A node with one CPU."""
        return self.start(f"--address=127.0.0.1:{self.port}", "--num-cpus=1")

    def ray(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | changed
        return subprocess.run(
            [str(BIN / "ray"), *arguments], env=environment, capture_output=True, text=True, cwd=self.folder
        )

    def submit(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return self.ray("job", "submit", "--address", self.address, *arguments, **changed)


def until(true: Callable[[], object], timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def end(node: subprocess.Popen[bytes]) -> None:
    """Ends a node and all that it started at once: the plug is pulled."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    tree = [node.pid]
    for ancestor in tree:
        tree.extend(pid for pid, parent in parents.items() if parent == ancestor)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have names of at most 107 bytes
    made = RayCluster(folder)
    try:
        made.head()
        yield made
    finally:
        for node in reversed(made.nodes):
            end(node)
        shutil.rmtree(folder, ignore_errors=True)


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
    around = Surroundings(Alone(), NullTracker(), NoCheckpoints(), lambda at: None, torch_cpu())
    return str(condense(config, around).provenance["content_digest"])


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
    assert "condensing" in cluster.ray("job", "logs", "--address", cluster.address, "first").stdout
    reached = steps()[-1]
    assert reached < 400
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
    assert after < 400
    cluster.join()
    log, _ = second.communicate(timeout=START_S)
    assert second.returncode == 0, log
    assert "condensing 1/400" not in log
    assert "condensing 400/400" in log
    assert "condensed set" in log
    (made,) = tmp_path.glob("condensed/*/data.parquet")
    assert read_dataset(made).provenance["content_digest"] == undisturbed(project)
    (found,) = connect(tracking_uri).search_runs(
        [connect(tracking_uri).get_experiment_by_name("condense").experiment_id],
        "params.source = 'parquet:pets_train.parquet'",
    )
    assert found.info.status == "FINISHED"
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
