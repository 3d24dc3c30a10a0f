"""Reads and checks versions in MLflow's Model Registry, whatever they hold.

A registered name with the tag kind=NOUN holds versions. A version is the folder NOUN among the artifacts of one run,
and its tags say what is in it. Aliases such as `best` point to versions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cluster.tracking_store import connect, refusals
from condense.errors import CondenseError, DatasetError, FlowError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECKSUMS = "sha256"  # tag: {file: SHA-256} of the folder, in JSON
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Kind:
    """What a registered name holds. digest: tag of the digest that makes two versions the same. error: of a misuse."""

    noun: str
    digest: str
    error: type[CondenseError]


DATASET = Kind("dataset", "content_digest", DatasetError)
FLOW = Kind("flow", "digest", FlowError)


@dataclass(frozen=True)
class Version:
    """One version of a registered name; `reference` is how to ask for it again."""

    name: str
    version: int
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    created: datetime = EPOCH
    kind: Kind = DATASET

    @property
    def reference(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def content_digest(self) -> str:
        return self.tags.get(self.kind.digest, "")

    def number(self, tag: str) -> float:
        """Returns the number in a tag; not a number where there is none."""
        try:
            return float(self.tags.get(tag, "nan"))
        except ValueError:
            return math.nan


def check_name(name: str, kind: Kind = DATASET) -> str:
    """Returns the name, if MLflow and a folder may have it: letters, digits, dots, dashes, underscores; at most 128.

    Raises:
        DatasetError, FlowError: otherwise.
    """
    if not NAME.fullmatch(name):
        raise kind.error(f"{name!r} is not a {kind.noun} name", "use letters, digits, dots, dashes and underscores")
    return name


def make_name(client: MlflowClient, name: str, kind: Kind) -> None:
    """Registers the name where it is not; raises where it holds something else."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"kind": kind.noun})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        _check_kind(client, name, kind)


def _check_kind(client: MlflowClient, name: str, kind: Kind) -> None:
    if client.get_registered_model(name).tags.get("kind") != kind.noun:
        raise kind.error(f"{name!r} is a registered model, not a {kind.noun}", "choose another name")


def names_of(client: MlflowClient, kind: Kind) -> list[str]:
    """Returns every registered name of a kind, sorted."""
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(f"tags.kind = '{kind.noun}'", max_results=100, page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def versions_of(client: MlflowClient, name: str, kind: Kind) -> list[Version]:
    """Returns the versions of a name, newest first; none for an unknown name."""
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
    versions = [to_version(version, aliases, kind) for version in found if version.tags.get("kind") == kind.noun]
    return sorted(versions, key=lambda version: -version.version)


def to_version(found: Any, aliases: Mapping[str, str], kind: Kind) -> Version:
    """MLflow's version as ours."""
    return Version(
        name=found.name,
        version=int(found.version),
        run_id=found.run_id,
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(found.version))),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        kind=kind,
    )


def is_there(client: MlflowClient, version: Version) -> bool:
    """Returns whether a version's run and all its files are there; MLflow keeps the version when they are removed."""
    listed = _list_files(client, version.run_id, version.kind)
    return bool(listed) and _checksums(version).keys() <= listed.keys()


def check_free(uri: str, name: str, kind: Kind = DATASET) -> None:
    """Asks before work starts whether a name can hold versions of a kind; makes nothing.

    Raises:
        DatasetError, FlowError: a name that MLflow cannot have, or one that holds something else.
        TrackingError: the store cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    check_name(name, kind)
    with refusals(uri, f"cannot look up {name!r}"):
        try:
            _check_kind(connect(uri), name, kind)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def sizes_of(folder: Path) -> dict[str, int]:
    """Returns the size of every file below a folder, by its path inside it."""
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def upload(client: MlflowClient, run_id: str, name: str, folder: Path, kind: Kind) -> str:
    """Uploads a folder and looks whether all of it arrived; its checksums in JSON."""
    client.log_artifacts(run_id, str(folder), kind.noun)
    # MLflow takes a version whose files do not exist, so the listing is asked first.
    listed, sizes = _list_files(client, run_id, kind), sizes_of(folder)
    missing = sorted(file for file, size in sizes.items() if listed.get(file) != size)
    if missing:
        raise kind.error(f"upload of {name!r} is not complete: {', '.join(missing)}", "register it again")
    return json.dumps({file: _sha256(folder / file) for file in sorted(sizes)})


def fetch(uri: str, version: Version, beside: Path) -> dict[str, Path]:
    """Downloads a version and compares it with its registered SHA-256; where each file lies, by its path inside.

    Raises:
        DatasetError, FlowError: missing or damaged artifacts, file names that leave the folder.
        TrackingError: the store cannot be reached or refuses.
    """
    kind = version.kind
    with refusals(uri, f"cannot download {version.reference}"):
        client = connect(uri)
        files = _list_files(client, version.run_id, kind)
        expected = _checksums(version)
        for file in {*files, *expected}:  # both are the server's word, and what they name is written and moved here
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file or not path.name:
                raise kind.error(f"{version.reference} holds a file that leaves its folder: {file!r}")
        if files:
            client.download_artifacts(version.run_id, kind.noun, str(beside))
    fetched = {file: beside / kind.noun / file for file in {*files, *expected}}
    wrong = [file for file, path in fetched.items() if not path.is_file()]
    wrong += [file for file, digest in expected.items() if file not in wrong and _sha256(fetched[file]) != digest]
    if wrong or not fetched:
        raise kind.error(
            f"artifacts of {version.reference} are missing or damaged: {', '.join(sorted(wrong)) or 'no files'}",
            f"look at run {version.run_id} in MLflow; the config that made it makes it again",
        )
    return fetched


def _checksums(version: Version) -> dict[str, str]:
    """Returns the SHA-256 that each file was registered with."""
    try:
        stated: dict[str, Any] = json.loads(version.tags.get(CHECKSUMS, "{}"))
        return {file: str(digest) for file, digest in stated.items()}
    except (ValueError, AttributeError):
        raise version.kind.error(
            f"tag {CHECKSUMS} of {version.reference} is damaged", f"look at run {version.run_id} in MLflow"
        ) from None


def differ(one: Path, other: Path) -> bool:
    """Returns whether two files, the first of which may be none, have other content."""
    return not one.is_file() or _sha256(one) != _sha256(other)


def _list_files(client: MlflowClient, run_id: str, kind: Kind) -> dict[str, int]:
    """Returns size of every file below the run's folder of that kind, by its path inside the folder.

    There is none where the run was deleted and `mlflow gc` has been there.
    """
    from mlflow.exceptions import MlflowException

    sizes: dict[str, int] = {}
    folders = [kind.noun]
    while folders:
        try:
            entries = client.list_artifacts(run_id, folders.pop())
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        for entry in entries:
            if entry.is_dir:
                folders.append(entry.path)
            else:
                sizes[entry.path.removeprefix(f"{kind.noun}/")] = entry.file_size
    return sizes


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
