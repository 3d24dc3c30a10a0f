"""Finds in MLflow what an earlier run of the same identity has made. It counts only if all its files are there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cluster.mlflow_runs import finished_runs
from cluster.tracking_store import connect, refusals
from cluster.versions import Kind, Version, fetch, versions_of
from condense.errors import CondenseError

log = logging.getLogger(__name__)


T = TypeVar("T")


@dataclass(frozen=True)
class Repeat(Generic[T]):
    """What an earlier run made, the version that it ended with, and its own files by their path inside the folder."""

    made: T
    version: Version
    files: dict[str, Path]


def find_repeat(
    uri: str,
    experiment: str,
    identity: str,
    name: str,
    kind: Kind,
    beside: Path,
    read: Callable[[dict[str, Path]], tuple[str, T] | None],
) -> Repeat[T] | None:
    """Returns what the latest finished run of an identity left, if its files and its version's are there and whole.

    Args:
        uri, experiment, identity: as the run was opened with.
        name: of the version.
        kind: what it holds.
        beside: a folder to download to.
        read: returns what the files hold, its digest first; None where another job or other data made it.

    Raises:
        TrackingError: the store cannot be reached or refuses.
        CondenseError: what `read` raises.
    """
    runs = finished_runs(uri, experiment, identity)
    if not runs:
        return None
    with refusals(uri, f"cannot read the versions of {name!r}"):
        versions = versions_of(connect(uri), name, kind)
    for run_id in runs:
        try:
            # Where two runs made the same content, the version holds the first one's files, and each run its own.
            files = fetch(uri, Version(name, 0, run_id, kind=kind), _made(beside / run_id))
        except CondenseError:
            log.warning("what run %s left is not there any more", run_id)
            continue
        found = read(files)
        if found is None:
            continue
        digest, made = found
        version = next((version for version in versions if version.content_digest == digest), None)
        if version is None:
            continue
        try:
            fetch(uri, version, _made(beside / version.reference))
        except CondenseError as error:
            log.warning("computing again: %s", error.problem)
            continue
        return Repeat(made, version, files)
    return None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
