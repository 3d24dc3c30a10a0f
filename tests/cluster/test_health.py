"""The image's own HEALTHCHECK against a running Ray head and MLflow server, started by the commands of compose.yaml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.builders.deployment import load, made_secrets
from tests.builders.local_cluster import BIN, end, free_port, until
from tests.conftest import ROOT


def health_command() -> str:
    """What the image's HEALTHCHECK runs in its shell."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^HEALTHCHECK .*? CMD (.*)$", text, re.MULTILINE)
    return str(command)


def healthy(url: str) -> bool:
    command = ["sh", "-c", health_command()]
    return subprocess.run(command, env={**os.environ, "HEALTH_URL": url}, timeout=60).returncode == 0


@contextmanager
def service(
    name: str, folder: Path, changed: dict[str, str], options: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A service of compose.yaml without its container: its command and environment, ports and places of the test."""
    config = load("compose.yaml")["services"][name]
    command = [
        part for part in config["command"] if part.partition("=")[0] not in {o.partition("=")[0] for o in options}
    ]
    secret = made_secrets()
    stated = {
        key: re.sub(r"\$\{(\w+)[^}]*\}", lambda m: secret[m[1]], value) for key, value in config["environment"].items()
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment = {**kept, **stated, **changed, "PATH": f"{BIN}:{os.environ['PATH']}"}
    log = (folder / "log").open("wb")
    started = subprocess.Popen([*command, *options], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield started, environment
    finally:
        end(started)


def wait_until_healthy(url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    until(lambda: healthy(url) or started.poll() is not None)
    assert started.poll() is None, log.read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_health_is_what_the_image_asks_of_a_ray_head_and_of_a_worker() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have names of at most 107 bytes
    dashboard, agent, gcs = free_port(), free_port(), free_port()
    services = load("compose.yaml")["services"]
    head = services["head"]["environment"]["HEALTH_URL"].replace(":8265", f":{dashboard}")
    worker = services["worker"]["environment"]["HEALTH_URL"].replace(":52365", f":{agent}")  # every node has this agent
    assert not healthy(head)
    assert not healthy(worker)
    assert healthy("")  # a driver serves nothing
    options = [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    options += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"]
    changed = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9"}
    try:
        with service("head", folder, changed, options) as (started, _):
            wait_until_healthy(head, started, folder / "log")
            wait_until_healthy(worker, started, folder / "log")
        assert not healthy(head)
        assert not healthy(worker)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.mlflow
@pytest.mark.slow
def test_health_is_what_the_image_asks_of_mlflow_which_lets_nobody_in_without_a_password(tmp_path: Path) -> None:
    config, port = load("compose.yaml"), free_port()
    url = config["services"]["mlflow"]["environment"]["HEALTH_URL"].replace(":5000", f":{port}")
    assert not healthy(url)
    (tmp_path / "auth.ini").write_text(config["configs"]["auth"]["content"].replace("/data/", f"{tmp_path}/"))
    changed = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    options = [f"--port={port}", "--host=127.0.0.1", f"--artifacts-destination={tmp_path}/artifacts"]
    options += [f"--allowed-hosts=127.0.0.1:{port}", "--workers=1"]
    with service("mlflow", tmp_path, changed, options) as (started, environment):
        wait_until_healthy(url, started, tmp_path / "log")
        asked = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
        password = environment["MLFLOW_AUTH_ADMIN_PASSWORD"]
        assert requests.get(asked, timeout=60).status_code == 401
        assert requests.get(asked, auth=("admin", password), timeout=60).status_code == 200
        assert (
            requests.get(asked, auth=("admin", password), headers={"Host": "elsewhere"}, timeout=60).status_code == 403
        )
    assert not healthy(url)
