"""Registers, lists, shows, promotes and downloads versions in MLflow's Model Registry.

They are datasets unless said otherwise. What a version is, and how its files are kept: versions.py.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from cluster.tracking_store import connect, refusals, require_store, sqlite_file, store_uri
from cluster.versions import (
    CHECKSUMS,
    DATASET,
    NAME,
    Kind,
    Version,
    check_name,
    differ,
    fetch,
    is_there,
    make_name,
    names_of,
    sizes_of,
    to_version,
    upload,
    versions_of,
)
from condense.errors import OutputError
from condense.files import scratch_folder

DatasetVersion = Version  # as it is called where datasets are all there is

BEST = "best"
REFERENCE = re.compile(
    rf"(?P<name>{NAME.pattern})(?:@(?P<alias>[A-Za-z][A-Za-z0-9_-]{{0,63}})|/(?P<version>[1-9]\d{{0,8}}))?"
)


def register(
    uri: str,
    run_id: str,
    name: str,
    folder: str | Path,
    tags: Mapping[str, str],
    *,
    description: str = "",
    kind: Kind = DATASET,
) -> Version:
    """Uploads a folder to a run and makes it the next version of a name, once for each digest.

    Args:
        uri: a server or an SQLite file.
        run_id: the run that made it; a run holds one version.
        name: see `check_name`.
        folder: its files go to the run's artifact folder of the kind's name; the upload is verified by listing it.
        tags: must hold the kind's digest; a dataset's `validation_accuracy` is what `update_best` reads.
        description: Markdown, shown by the UI.
        kind: what is registered; its error is raised.

    Returns:
        The new version, or the one of this name that already has the digest and whose files are there.

    Raises:
        DatasetError, FlowError: a wrong name, no digest, an empty folder, an upload that is not complete, a run that
            already holds something else.
        TrackingError: the store cannot be reached or refuses.
    """
    check_name(name, kind)
    folder = Path(folder)
    digest = tags.get(kind.digest)
    if not digest:
        raise kind.error(f"{kind.noun} {name!r} has no {kind.digest} tag", "pass the digest of what it holds")
    if not sizes_of(folder):
        raise kind.error(f"folder {folder} holds no files to register as {name!r}")
    with refusals(uri, f"cannot register {name!r}"):
        client = connect(uri)
        make_name(client, name, kind)
        equal = [version for version in versions_of(client, name, kind) if version.content_digest == digest]
        same = next((version for version in equal if is_there(client, version)), None)
        mine = next((version for version in equal if version.run_id == run_id), None)
        if mine is not None and mine == same:
            return mine
        for known in client.search_model_versions(f"run_id='{run_id}'"):
            if mine is None or (known.name, int(known.version)) != (name, mine.version):
                raise kind.error(
                    f"run {run_id} already holds {known.name}/{known.version} with other content", "start a new run"
                )
        checksums = upload(client, run_id, name, folder, kind)
        if same:
            return same
        if mine:
            client.set_model_version_tag(name, str(mine.version), CHECKSUMS, checksums)
            return mine
        made = client.create_model_version(
            name,
            source=f"runs:/{run_id}/{kind.noun}",
            run_id=run_id,
            tags={**tags, "kind": kind.noun, CHECKSUMS: checksums},
            description=description or None,
        )
        return to_version(made, {}, kind)


def complete(uri: str, version: Version, folder: str | Path, tags: Mapping[str, str]) -> None:
    """Uploads a version's folder again, whose images are the same and whose card says more, and adds tags.

    Raises:
        DatasetError: an upload that is not complete.
        TrackingError: the store cannot be reached or refuses.
    """
    folder = Path(folder)
    with refusals(uri, f"cannot complete {version.reference}"):
        client = connect(uri)
        checksums = upload(client, version.run_id, version.name, folder, version.kind)
        for key, value in {**tags, CHECKSUMS: checksums}.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)


def mark(uri: str, name: str, key: str, value: str, versions: Iterable[int]) -> None:
    """Sets a tag on these versions of a name, and takes it from all others."""
    chosen = set(versions)
    with refusals(uri, f"cannot mark versions of {name!r}"):
        client = connect(uri)
        for version in versions_of(client, check_name(name), DATASET):
            if version.version in chosen and version.tags.get(key) != value:
                client.set_model_version_tag(name, str(version.version), key, value)
            elif version.version not in chosen and key in version.tags:
                client.delete_model_version_tag(name, str(version.version), key)


def promote(uri: str, name: str, version: int, alias: str = BEST, *, kind: Kind = DATASET) -> Version:
    """Points an alias at a version.

    Raises:
        DatasetError, FlowError: for a version that does not exist, or an alias that is not a word.
        TrackingError: the store cannot be reached or refuses.
    """
    if not REFERENCE.fullmatch(f"{check_name(name, kind)}@{alias}") or alias == "latest":
        raise kind.error(f"{alias!r} cannot be an alias", "use a word; MLflow keeps `latest` for itself")
    show(uri, f"{name}/{version}", kind=kind)
    with refusals(uri, f"cannot promote {name}/{version}"):
        connect(uri).set_registered_model_alias(name, alias, str(version))
    return show(uri, f"{name}/{version}", kind=kind)


def update_best(uri: str, name: str, key: str = "validation_accuracy") -> Version | None:
    """Points `best` at the version whose tag `key` is the highest number, the newest of equals; None without any.

    A version whose files are gone is none.
    """
    with refusals(uri, f"cannot read the versions of {name!r}"):
        client = connect(uri)
        versions = versions_of(client, check_name(name), DATASET)
        scored = [version for version in versions if math.isfinite(version.number(key))]
        scored.sort(key=lambda version: (version.number(key), version.version), reverse=True)
        best = next((version for version in scored if is_there(client, version)), None)
    return promote(uri, name, best.version) if best else None


def list_datasets(uri: str) -> list[Version]:
    """Returns every version of every registered dataset, by name, the newest version first."""
    return list_versions(uri, DATASET)


def list_versions(uri: str, kind: Kind) -> list[Version]:
    """Returns every version of every registered name of a kind, by name, the newest version first."""
    require_store(uri)
    with refusals(uri, f"cannot list {kind.noun}s"):
        client = connect(uri)
        return [version for name in names_of(client, kind) for version in versions_of(client, name, kind)]


def show(uri: str, reference: str, *, kind: Kind = DATASET) -> Version:
    """Returns the version that NAME, NAME@alias or NAME/version means. A bare NAME means its `best`, else its newest.

    Raises:
        DatasetError, FlowError: saying which names, versions or aliases there are.
        TrackingError: the store cannot be reached or refuses.
    """
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise kind.error(f"{reference!r} names no {kind.noun}", "write NAME, NAME@alias or NAME/version")
    name, alias, number = check_name(match["name"], kind), match["alias"], match["version"]
    require_store(uri)
    with refusals(uri, f"cannot look up {reference!r}"):
        client = connect(uri)
        versions = versions_of(client, name, kind)
        names = [] if versions else names_of(client, kind)
    if not versions:
        there = f"there is: {', '.join(names)}" if names else "there is none yet"
        raise kind.error(f"there is no {kind.noun} {name!r} in {uri}", there)
    if number:
        found = [version for version in versions if version.version == int(number)]
    elif alias and alias != "latest":
        found = [version for version in versions if alias in version.aliases]
    else:
        best = [version for version in versions if BEST in version.aliases and alias is None]
        found = best or versions[:1]
    if not found:
        there = ", ".join("@".join([str(version.version), *version.aliases]) for version in versions)
        raise kind.error(
            f"{kind.noun} {name!r} has no {'version ' + number if number else 'alias ' + alias}", f"versions: {there}"
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
        with scratch_folder(out) as beside:
            fetched = fetch(uri, version, Path(beside))
            in_the_way = [file for file in fetched if (out / file).exists() and differ(out / file, fetched[file])]
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
    """Returns the address of MLflow's comparison of runs; `ui` is where an SQLite file is shown (`condense ui`)."""
    uri = store_uri(uri)
    with refusals(uri, "cannot look up the runs to compare"):
        client = connect(uri)
        experiments = sorted({client.get_run(run_id).info.experiment_id for run_id in run_ids})
    base = ui if sqlite_file(uri) else uri
    runs, inside = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), experiments))
    return f"{base}/#/compare-runs?runs={runs}&experiments={inside}"
