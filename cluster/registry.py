"""Versioned datasets in MLflow's Model Registry: register, list, show, promote, compare, download.

A registered name with the tag kind=dataset holds versions; a version is the folder `dataset` among the artifacts of
one run, and its tags say what is in it. Aliases (`best`) point to versions.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cluster.store import connect, refusals, require_store, sqlite_file, store_uri
from condense.errors import DatasetError, OutputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT_PATH = "dataset"
KIND = {"kind": "dataset"}
DIGEST = "content_digest"  # tag: of the images and labels; what makes two versions the same
CHECKSUMS = "sha256"  # tag: {file: SHA-256} of the folder, in JSON
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REFERENCE = re.compile(
    rf"(?P<name>{NAME.pattern})(?:@(?P<alias>[A-Za-z][A-Za-z0-9_-]{{0,63}})|/(?P<version>[1-9]\d{{0,8}}))?"
)
BEST = "best"
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a registered dataset; `reference` is how to ask for it again."""

    name: str
    version: int
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    created: datetime = EPOCH

    @property
    def reference(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def content_digest(self) -> str:
        return self.tags.get(DIGEST, "")


def check_name(name: str) -> str:
    """The name, if a dataset may have it: letters, digits, dots, dashes, underscores; at most 128.

    Raises:
        DatasetError: otherwise.
    """
    if not NAME.fullmatch(name):
        raise DatasetError(f"{name!r} is not a dataset name", "use letters, digits, dots, dashes and underscores")
    return name


def register(
    uri: str, run_id: str, name: str, folder: str | Path, tags: Mapping[str, str], *, description: str = ""
) -> DatasetVersion:
    """Uploads a folder to a run and makes it the next version of a name, once for each content digest.

    Args:
        uri: a server or an SQLite file.
        run_id: the run that made the dataset; a run holds one dataset.
        name: see `check_name`.
        folder: its files go to the run's artifact folder `dataset`; the upload is verified by listing it.
        tags: must hold `content_digest`; `validation_accuracy` is what `update_best` reads.
        description: Markdown, shown by the UI.

    Returns:
        The new version, or the one of this name that already has the digest.

    Raises:
        DatasetError: a wrong name, no digest, an empty folder, an upload that is not complete, a run that already
            holds another dataset.
        TrackingError: the store cannot be reached or refuses.
    """
    check_name(name)
    folder = Path(folder)
    digest = tags.get(DIGEST)
    if not digest:
        raise DatasetError(f"dataset {name!r} has no {DIGEST} tag", "pass the digest of its images and labels")
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    if not sizes:
        raise DatasetError(f"folder {folder} holds no files to register as {name!r}")
    with refusals(uri, f"cannot register {name!r}"):
        client = connect(uri)
        _make_name(client, name)
        same = next((version for version in _versions(client, name) if version.content_digest == digest), None)
        if same and same.run_id == run_id:
            return same
        for known in client.search_model_versions(f"run_id='{run_id}'"):
            raise DatasetError(
                f"run {run_id} already holds {known.name}/{known.version} with other content", "start a new run"
            )
        client.log_artifacts(run_id, str(folder), ARTIFACT_PATH)
        # MLflow takes a version whose files do not exist, so the listing is asked first.
        listed = _list_files(client, run_id)
        missing = sorted(file for file, size in sizes.items() if listed.get(file) != size)
        if missing:
            raise DatasetError(f"upload of {name!r} is not complete: {', '.join(missing)}", "register it again")
        if same:
            return same
        checksums = json.dumps({file: _sha256(folder / file) for file in sorted(sizes)})
        made = client.create_model_version(
            name,
            source=f"runs:/{run_id}/{ARTIFACT_PATH}",
            run_id=run_id,
            tags={**tags, **KIND, CHECKSUMS: checksums},
            description=description or None,
        )
        return _version(made, aliases={})


def promote(uri: str, name: str, version: int, alias: str = BEST) -> DatasetVersion:
    """Points an alias at a version.

    Raises:
        DatasetError: for a version that does not exist, or an alias that is not a word.
        TrackingError: the store cannot be reached or refuses.
    """
    if not REFERENCE.fullmatch(f"{check_name(name)}@{alias}") or alias == "latest":
        raise DatasetError(f"{alias!r} cannot be an alias", "use a word; MLflow keeps `latest` for itself")
    show(uri, f"{name}/{version}")
    with refusals(uri, f"cannot promote {name}/{version}"):
        connect(uri).set_registered_model_alias(name, alias, str(version))
    return show(uri, f"{name}/{version}")


def update_best(uri: str, name: str, key: str = "validation_accuracy") -> DatasetVersion | None:
    """Points `best` at the version whose tag `key` is the highest number, the newest of equals; None without any."""
    with refusals(uri, f"cannot read the versions of {name!r}"):
        versions = _versions(connect(uri), check_name(name))
    scored = [(score, version.version) for version in versions if math.isfinite(score := _number(version, key))]
    return promote(uri, name, max(scored)[1]) if scored else None


def list_datasets(uri: str) -> list[DatasetVersion]:
    """Every version of every registered dataset, by name, the newest version first."""
    require_store(uri)
    with refusals(uri, "cannot list datasets"):
        client = connect(uri)
        return [version for name in _names(client) for version in _versions(client, name)]


def show(uri: str, reference: str) -> DatasetVersion:
    """The version that NAME, NAME@alias or NAME/version means; a bare NAME is its `best`, else its newest.

    Raises:
        DatasetError: saying which names, versions or aliases there are.
        TrackingError: the store cannot be reached or refuses.
    """
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise DatasetError(f"{reference!r} names no dataset", "write NAME, NAME@alias or NAME/version")
    name, alias, number = check_name(match["name"]), match["alias"], match["version"]
    require_store(uri)
    with refusals(uri, f"cannot look up {reference!r}"):
        client = connect(uri)
        versions = _versions(client, name)
        names = [] if versions else _names(client)
    if not versions:
        raise DatasetError(
            f"there is no dataset {name!r} in {uri}", f"there is: {', '.join(names)}" if names else "there is none yet"
        )
    if number:
        found = [version for version in versions if version.version == int(number)]
    elif alias and alias != "latest":
        found = [version for version in versions if alias in version.aliases]
    else:
        best = [version for version in versions if BEST in version.aliases and alias is None]
        found = best or versions[:1]
    if not found:
        there = ", ".join("@".join([str(version.version), *version.aliases]) for version in versions)
        raise DatasetError(
            f"dataset {name!r} has no {'version ' + number if number else 'alias ' + alias}", f"versions: {there}"
        )
    return found[0]


def download(uri: str, reference: str, out_dir: str | Path, *, force: bool = False) -> Path:
    """Writes the files of a version into a folder, byte for byte, and returns the folder.

    The files are fetched to one side, compared with their registered SHA-256, and moved into place when all are whole.

    Args:
        reference: see `show`.
        out_dir: made where it does not exist; other files in it stay.
        force: replace files of the same name that differ.

    Raises:
        DatasetError: unknown reference, missing or damaged artifacts, file names that leave the folder.
        OutputError: the folder cannot be written, or a file that differs is in the way.
        TrackingError: the store cannot be reached or refuses.
    """
    version = show(uri, reference)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".download-") as beside:
            fetched = _fetch(uri, version, Path(beside))
            in_the_way = [file for file in fetched if (out / file).exists() and _differ(out / file, fetched[file])]
            if in_the_way and not force:
                raise OutputError(f"{out / in_the_way[0]} exists and differs", "choose another folder or force")
            for file, source in fetched.items():
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                with source.open("rb") as stream:
                    os.fsync(stream.fileno())
                source.replace(out / file)
    except OSError as error:
        raise OutputError(f"folder {out} cannot be written: {error}", "choose another folder") from None
    return out


def compare_url(uri: str, run_ids: Sequence[str], *, ui: str = "http://127.0.0.1:5000") -> str:
    """The address of MLflow's comparison of runs; `ui` is where an SQLite file is shown (`condense ui`)."""
    uri = store_uri(uri)
    with refusals(uri, "cannot look up the runs to compare"):
        client = connect(uri)
        experiments = sorted({client.get_run(run_id).info.experiment_id for run_id in run_ids})
    base = ui if sqlite_file(uri) else uri
    runs, inside = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), experiments))
    return f"{base}/#/compare-runs?runs={runs}&experiments={inside}"


def _make_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags=KIND)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if client.get_registered_model(name).tags.get("kind") != KIND["kind"]:
            raise DatasetError(f"{name!r} is a registered model, not a dataset", "choose another name") from None


def _names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models("tags.kind = 'dataset'", max_results=100, page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def _versions(client: MlflowClient, name: str) -> list[DatasetVersion]:
    """The versions of a name, newest first; none for an unknown name."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    # The search leaves aliases out, so they are read from the name.
    aliases = client.get_registered_model(name).aliases if found else {}
    versions = [_version(version, aliases) for version in found if version.tags.get("kind") == KIND["kind"]]
    return sorted(versions, key=lambda version: -version.version)


def _version(found: Any, aliases: Mapping[str, str]) -> DatasetVersion:
    return DatasetVersion(
        name=found.name,
        version=int(found.version),
        run_id=found.run_id,
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(found.version))),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
    )


def _list_files(client: MlflowClient, run_id: str) -> dict[str, int]:
    """Size of every file below the run's dataset folder, by its path inside the folder."""
    sizes: dict[str, int] = {}
    folders = [ARTIFACT_PATH]
    while folders:
        for entry in client.list_artifacts(run_id, folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                sizes[entry.path.removeprefix(f"{ARTIFACT_PATH}/")] = entry.file_size
    return sizes


def _fetch(uri: str, version: DatasetVersion, beside: Path) -> dict[str, Path]:
    """Downloads a version; where each of its files lies, by its path inside the dataset."""
    with refusals(uri, f"cannot download {version.reference}"):
        client = connect(uri)
        files = _list_files(client, version.run_id)
        for file in files:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or "\\" in file:
                raise DatasetError(f"{version.reference} holds a file that leaves its folder: {file!r}")
        if files:
            client.download_artifacts(version.run_id, ARTIFACT_PATH, str(beside))
    expected: dict[str, str] = json.loads(version.tags.get(CHECKSUMS, "{}"))
    fetched = {file: beside / ARTIFACT_PATH / file for file in {*files, *expected}}
    wrong = [file for file, path in fetched.items() if not path.is_file()]
    wrong += [file for file, digest in expected.items() if file not in wrong and _sha256(fetched[file]) != digest]
    if wrong or not fetched:
        raise DatasetError(
            f"artifacts of {version.reference} are missing or damaged: {', '.join(sorted(wrong)) or 'no files'}",
            f"look at run {version.run_id} in MLflow",
        )
    return fetched


def _number(version: DatasetVersion, key: str) -> float:
    try:
        return float(version.tags.get(key, "nan"))
    except ValueError:
        return math.nan


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _differ(one: Path, other: Path) -> bool:
    return not one.is_file() or _sha256(one) != _sha256(other)
