"""Versioned datasets in a real MLflow registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import unquote

import pytest

from cluster.registry import (
    DatasetVersion,
    check_name,
    compare_url,
    download,
    list_datasets,
    promote,
    register,
    show,
    update_best,
)
from cluster.run import run
from cluster.tracking_store import SQLITE, connect
from cluster.versions import FLOW, check_free
from condense.condensation.config import RunConfig
from condense.errors import DatasetError, FlowError, OutputError
from condense.settings import resolve
from tests.builders.mlflow_runs import new_run
from tests.builders.registered import contents, make_folder
from tests.builders.runs import TINY

pytestmark = pytest.mark.mlflow


@pytest.fixture
def name() -> str:
    return f"digits-{uuid.uuid4().hex[:8]}"


def add(uri: str, name: str, folder: Path, **tags: str) -> DatasetVersion:
    content = uuid.uuid4().hex
    return register(
        uri, new_run(uri), name, make_folder(folder / content, content.encode()), {"content_digest": content, **tags}
    )


def test_a_registered_dataset_comes_back_byte_for_byte(tracking_uri: str, name: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "made")
    made = register(tracking_uri, new_run(tracking_uri), name, folder, {"content_digest": "d1", "bits": "12"})
    assert (made.name, made.version, made.tags["bits"], made.reference) == (name, 1, "12", f"{name}/1")
    assert contents(download(tracking_uri, name, tmp_path / "out")) == contents(folder)


def test_mlflow_itself_downloads_the_same_bytes(tracking_uri: str, name: str, tmp_path: Path) -> None:
    made = add(tracking_uri, name, tmp_path)
    command = ["artifacts", "download", "-u", f"models:/{name}/{made.version}", "-d", str(tmp_path / "out")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-m", "mlflow", *command], check=True, env=environment, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / made.content_digest)


def test_the_same_content_is_registered_once(tracking_uri: str, name: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "made")
    runs = [new_run(tracking_uri), new_run(tracking_uri)]
    first = register(tracking_uri, runs[0], name, folder, {"content_digest": "d1"})
    assert register(tracking_uri, runs[0], name, folder, {"content_digest": "d1"}) == first
    assert register(tracking_uri, runs[1], name, folder, {"content_digest": "d1"}) == first
    assert [file.path for file in connect(tracking_uri).list_artifacts(runs[1])] == ["dataset"]
    other = register(tracking_uri, new_run(tracking_uri), name, folder, {"content_digest": "d2"})
    assert other.version == 2


def test_a_run_holds_one_dataset_so_that_no_version_is_overwritten(
    tracking_uri: str, name: str, tmp_path: Path
) -> None:
    run_id = new_run(tracking_uri)
    register(tracking_uri, run_id, name, make_folder(tmp_path / "one"), {"content_digest": "d1"})
    with pytest.raises(DatasetError, match=f"already holds {name}/1"):
        register(tracking_uri, run_id, name, make_folder(tmp_path / "two", b"other"), {"content_digest": "d2"})


def test_best_follows_the_highest_validation_accuracy_and_then_the_newest(
    tracking_uri: str, name: str, tmp_path: Path
) -> None:
    for accuracy in ("0.70", "0.90", "nonsense", "0.90", "0.80"):
        add(tracking_uri, name, tmp_path, validation_accuracy=accuracy)
    best = update_best(tracking_uri, name)
    assert best is not None
    assert (best.version, best.aliases) == (4, ("best",))
    assert show(tracking_uri, name) == show(tracking_uri, f"{name}@best") == best
    assert show(tracking_uri, f"{name}@latest").version == 5


def test_best_of_versions_without_accuracy_is_none(tracking_uri: str, name: str, tmp_path: Path) -> None:
    add(tracking_uri, name, tmp_path)
    assert update_best(tracking_uri, name) is None
    assert show(tracking_uri, name).version == 1


def test_an_alias_moves_to_the_version_that_is_promoted(tracking_uri: str, name: str, tmp_path: Path) -> None:
    add(tracking_uri, name, tmp_path)
    add(tracking_uri, name, tmp_path)
    promote(tracking_uri, name, 1, "smallest")
    promoted = promote(tracking_uri, name, 2, "smallest")
    assert (promoted.version, promoted.aliases) == (2, ("smallest",))
    assert show(tracking_uri, f"{name}/1").aliases == ()
    with pytest.raises(DatasetError, match="cannot be an alias"):
        promote(tracking_uri, name, 1, "latest")
    with pytest.raises(DatasetError, match="no version 9"):
        promote(tracking_uri, name, 9)


def test_datasets_are_listed_by_name_with_the_newest_version_first(
    tracking_uri: str, name: str, tmp_path: Path
) -> None:
    add(tracking_uri, name, tmp_path)
    add(tracking_uri, name, tmp_path)
    connect(tracking_uri).create_registered_model(f"{name}-model")
    mine = [version.reference for version in list_datasets(tracking_uri) if version.name.startswith(name)]
    assert mine == [f"{name}/2", f"{name}/1"]


def test_what_is_unknown_is_answered_with_what_there_is(tracking_uri: str, name: str, tmp_path: Path) -> None:
    add(tracking_uri, name, tmp_path)
    promote(tracking_uri, name, 1)
    for reference, message in (("nothing", name), (f"{name}/7", "1@best"), (f"{name}@worst", "1@best")):
        with pytest.raises(DatasetError, match=message):
            show(tracking_uri, reference)


@pytest.mark.parametrize(
    "reference", ["", "../x", "/etc", "a/../b", "name/0", "name/-1", "name@", "name@1", "na me", "x" * 200, "é"]
)
def test_a_reference_that_names_no_dataset_is_refused_before_asking(reference: str) -> None:
    with pytest.raises(DatasetError, match="dataset"):
        show("sqlite:////nowhere/mlflow.db", reference)


@pytest.mark.parametrize("wrong", ["", "a/b", "../a", "a b", ".hidden", "a@b", "a'b"])
def test_a_name_with_other_characters_is_refused(wrong: str) -> None:
    with pytest.raises(DatasetError, match="not a dataset name"):
        check_name(wrong)


def test_a_model_of_the_same_name_is_not_taken_over(tracking_uri: str, name: str, tmp_path: Path) -> None:
    connect(tracking_uri).create_registered_model(name)
    with pytest.raises(DatasetError, match="is a registered model"):
        add(tracking_uri, name, tmp_path)


def test_an_empty_folder_and_a_missing_digest_are_refused(tracking_uri: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no files"):
        register(tracking_uri, "run", name, tmp_path, {"content_digest": "d1"})
    with pytest.raises(DatasetError, match="content_digest"):
        register(tracking_uri, "run", name, tmp_path, {})


def test_a_download_replaces_a_different_file_only_when_forced(tracking_uri: str, name: str, tmp_path: Path) -> None:
    made = add(tracking_uri, name, tmp_path)
    out = download(tracking_uri, name, tmp_path / "out")
    assert download(tracking_uri, name, out) == out
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("mine")
    (out / "data.parquet").unlink()
    with pytest.raises(OutputError, match=r"README.md exists and differs"):
        download(tracking_uri, name, out)
    assert not (out / "data.parquet").exists()
    download(tracking_uri, name, out, force=True)
    there = contents(out)
    assert there.pop("notes.txt") == b"mine"
    assert there == contents(tmp_path / made.content_digest)


def test_a_download_into_a_file_is_refused(tracking_uri: str, name: str, tmp_path: Path) -> None:
    add(tracking_uri, name, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        download(tracking_uri, name, tmp_path / "file")


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_damaged_artifacts_are_named_and_nothing_is_left(
    tracking_uri: str, name: str, tmp_path: Path, damage: str
) -> None:
    made = add(tracking_uri, name, tmp_path)
    store = Path(tracking_uri.removeprefix(SQLITE)).parent / "mlartifacts" / made.run_id / "artifacts" / "dataset"
    if damage == "change":
        (store / "data.parquet").write_bytes(b"x" * 32)
    else:
        (store / "data.parquet").unlink()
    with pytest.raises(DatasetError, match=r"missing or damaged: data\.parquet"):
        download(tracking_uri, name, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def lose(uri: str, version: DatasetVersion, how: str) -> None:
    """Takes a version's files away, or its run with them; MLflow keeps the version."""
    if how == "folder removed":
        shutil.rmtree(Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" / version.run_id / "artifacts" / "dataset")
        return
    connect(uri).delete_run(version.run_id)
    gc = ["gc", "--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", version.run_id]
    subprocess.run([sys.executable, "-m", "mlflow", *gc], check=True, capture_output=True)


@pytest.mark.parametrize("how", ["folder removed", "run deleted and collected"])
def test_a_version_whose_files_are_gone_is_no_version_and_its_content_is_registered_anew(
    tracking_uri: str, name: str, tmp_path: Path, how: str
) -> None:
    folder, tags = make_folder(tmp_path / "made"), {"content_digest": "d1", "validation_accuracy": "90"}
    other = add(tracking_uri, name, tmp_path, validation_accuracy="80")
    lost = register(tracking_uri, new_run(tracking_uri), name, folder, tags)
    assert update_best(tracking_uri, name) == show(tracking_uri, lost.reference)
    lose(tracking_uri, lost, how)
    with pytest.raises(DatasetError, match=r"missing or damaged: .*data\.parquet"):
        download(tracking_uri, lost.reference, tmp_path / "none")
    best = update_best(tracking_uri, name)
    assert best is not None
    assert best.reference == other.reference
    again = register(tracking_uri, new_run(tracking_uri), name, folder, tags)
    assert again.version == 3
    assert contents(download(tracking_uri, f"{name}/3", tmp_path / "out")) == contents(folder)
    assert register(tracking_uri, new_run(tracking_uri), name, folder, tags).version == 3


def test_a_run_that_goes_on_uploads_again_what_its_version_has_lost(
    tracking_uri: str, name: str, tmp_path: Path
) -> None:
    folder, tags, run_id = make_folder(tmp_path / "made"), {"content_digest": "d1"}, new_run(tracking_uri)
    made = register(tracking_uri, run_id, name, folder, tags)
    lose(tracking_uri, made, "folder removed")
    (folder / "README.md").write_text("# Another card\n")
    assert register(tracking_uri, run_id, name, folder, tags).version == 1
    assert contents(download(tracking_uri, name, tmp_path / "out")) == contents(folder)


def test_whether_a_name_is_free_is_known_before_anything_is_registered(tracking_uri: str, name: str) -> None:
    check_free(tracking_uri, name)
    connect(tracking_uri).create_registered_model(name)
    with pytest.raises(DatasetError, match="is a registered model, not a dataset"):
        check_free(tracking_uri, name)
    with pytest.raises(FlowError, match="is a registered model, not a flow"):
        check_free(tracking_uri, name, FLOW)


def test_a_run_whose_name_is_a_models_is_refused_before_any_work(tracking_uri: str, name: str, tmp_path: Path) -> None:
    connect(tracking_uri).create_registered_model(name)
    places = [f"output={tmp_path}/condensed", f"storage={tmp_path}/runs", f"tracking_uri={tracking_uri}"]
    with pytest.raises(DatasetError, match=f"'{name}' is a registered model, not a dataset"):
        run(resolve(RunConfig, None, [*TINY, *places, "workers=0", f"name={name}"]), lambda at: pytest.fail("it works"))
    assert not (tmp_path / "runs").exists()


def test_the_compare_link_names_the_runs_and_their_experiments(tracking_uri: str) -> None:
    runs = [new_run(tracking_uri), new_run(tracking_uri)]
    url = unquote(compare_url(tracking_uri, runs, ui="http://127.0.0.1:5001"))
    head, experiments = url.split("&experiments=")
    assert head == f"http://127.0.0.1:5001/#/compare-runs?runs={json.dumps(runs, separators=(',', ':'))}"
    assert json.loads(experiments) == [connect(tracking_uri).get_run(runs[0]).info.experiment_id]
