"""What strangers send and what must not leak: hostile registries, passwords in URIs, tokens, folders."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from cluster.registry import download, register
from cluster.tracking_store import SQLITE, connect, store_uri
from cluster.versions import CHECKSUMS
from condense.condensation.config import RunConfig
from condense.errors import ConfigError, DatasetError, TrackingError
from condense.settings import resolve
from tests.builders.mlflow_runs import new_run
from tests.builders.registered import contents, make_folder

SECRET = "hidden-p@ss/word"


@pytest.mark.mlflow
@pytest.mark.parametrize(
    "stated",
    [
        json.dumps({"../../../victim.txt": hashlib.sha256(b"mine").hexdigest()}),
        json.dumps({"/etc/hostname": "0" * 64}),
        json.dumps({"figures/../../victim.txt": "0" * 64}),
        json.dumps({"..\\victim.txt": "0" * 64}),
        json.dumps(["data.parquet"]),
        "no json",
    ],
)
def test_checksums_that_name_files_elsewhere_are_refused_and_move_nothing(
    stated: str, tracking_uri: str, tmp_path: Path
) -> None:
    name = f"hostile-{uuid.uuid4().hex[:8]}"
    folder = make_folder(tmp_path / "made")
    made = register(tracking_uri, new_run(tracking_uri), name, folder, {"content_digest": "d"})
    connect(tracking_uri).set_model_version_tag(name, str(made.version), CHECKSUMS, stated)
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    with pytest.raises(DatasetError, match=r"leaves its folder|damaged"):
        download(tracking_uri, name, tmp_path / "out")
    assert victim.read_text() == "mine"
    assert contents(tmp_path / "out") == {}


@pytest.mark.mlflow
def test_an_artifact_whose_name_climbs_out_of_its_folder_writes_nothing_outside(
    tracking_uri: str, tmp_path: Path
) -> None:
    name = f"hostile-{uuid.uuid4().hex[:8]}"
    run_id = new_run(tracking_uri)
    register(tracking_uri, run_id, name, make_folder(tmp_path / "made"), {"content_digest": "d"})
    store = Path(tracking_uri.removeprefix(SQLITE)).parent / "mlartifacts" / run_id / "artifacts" / "dataset"
    (store / "..\\climbs.txt").write_text("out")
    with pytest.raises(DatasetError, match="leaves its folder"):
        download(tracking_uri, name, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", "a\\b", "", "..", ".hidden", "a\0b", "x" * 101, "é"])
def test_a_run_cannot_be_named_out_of_its_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        resolve(RunConfig, None, [f"name={json.dumps(name)}"])


@pytest.mark.parametrize("source_name", ["..", "_mine", "-x", "../../etc", "ä ö", "", "x" * 300])
def test_a_name_that_comes_from_the_source_is_one_that_a_folder_and_the_registry_take(source_name: str) -> None:
    from cluster.versions import check_name
    from condense.condensation.in_process import folder_of

    config = resolve(RunConfig, None, ["output=out"])
    assert check_name(config.dataset_name(source_name))
    assert folder_of(config, source_name).resolve().parent == Path("out").resolve()


@pytest.mark.parametrize("uri", [f"https://ann:{SECRET.replace('/', '')}@host:5000", "http://token@host"])
def test_a_tracking_uri_with_a_password_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        store_uri(uri)
    assert "MLFLOW_TRACKING_PASSWORD" in caught.value.remedy
    assert not any(part in str(caught.value) for part in ("hidden", "p@ss", "token"))


def test_a_password_reaches_neither_params_nor_provenance_nor_the_console(tmp_path: Path) -> None:
    uri = "http://ann:hidden-p@ss@127.0.0.1:1"
    config = resolve(RunConfig, None, [f"tracking_uri={uri}", f"storage={uri}"])
    assert "hidden" not in json.dumps(config.as_dict())
    assert "p@ss" not in json.dumps(config.as_dict())
    command = [str(Path(sys.executable).with_name("condense")), "run", "absent.yaml", f"tracking_uri={uri}"]
    (tmp_path / "absent.yaml").write_text("source: digits\nworkers: 0\n")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "hidden" not in ended.stdout + ended.stderr
    assert "p@ss" not in ended.stdout + ended.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and "hidden" in file.read_text(errors="replace")]


@pytest.mark.ray
def test_the_token_of_a_cluster_that_condense_starts_is_for_its_owner_alone(tmp_path: Path) -> None:
    program = (
        "from cluster.ray_connection import QUIET, _make_token; import os; os.environ.update(QUIET); _make_token()"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env={**kept, "HOME": str(tmp_path)}, check=True)
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


def test_results_are_refused_a_place_in_a_folder_that_goes_with_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.shared_paths import check_places

    unpacked = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    kept = ["output=/data/condensed", "storage=s3://bucket/runs", "tracking_uri=http://mlflow:5000"]
    check_places(resolve(RunConfig, None, kept))
    check_places(resolve(RunConfig, None, [*kept[:2], "tracking_uri=none"]))
    for place in ("output=condensed", "storage=runs", "tracking_uri=sqlite:///mlflow.db"):
        with pytest.raises(ConfigError, match=place.partition("=")[0]):
            check_places(resolve(RunConfig, None, [*kept, place]))
