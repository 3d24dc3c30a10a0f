"""Connects to MLflow's tracking store: checks the URI, and asks before work starts whether the store can be used.

mlflow is imported inside functions: that costs seconds, and its telemetry must be off before it loads.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from condense.errors import DatasetError, TrackingError, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
ARTIFACTS = "mlartifacts"  # folder beside an SQLite file; MLflow's own default is the working directory
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

CHECK_S = 5.0  # how long a server that cannot be reached is asked again before work starts
CHECK_ANSWER_S = 30  # how long an answer may take then: a busy server hashes a password for seconds

# Answers that will not change by waiting; everything else that goes wrong is an outage.
REFUSALS = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
UNREACHED = re.compile(r"API request to \S+ failed with (timeout )?exception|error code 50[234]\b")
PAGE = re.compile(r"Response body: '\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def store_uri(uri: str) -> str:
    """Returns the tracking URI with an absolute path, so that it means the same in every working directory.

    Raises:
        TrackingError: for anything but an http(s) server or an SQLite file, or a URI with a password in it.
    """
    if re.match(r"https?://[^/]", uri):
        if "@" in urlsplit(uri).netloc:
            # A URI goes into params, logs and command lines; MLflow itself reads these two.
            raise TrackingError(
                f"tracking_uri {redacted(uri)!r} holds a user name or password before its @",
                "leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        return uri.rstrip("/")
    path = uri.removeprefix(SQLITE)
    if uri.startswith(SQLITE) and path and path != ":memory:" and "?" not in path:
        return SQLITE + str(Path(path).absolute())
    raise TrackingError(
        f"tracking_uri {redacted(uri)!r} is neither a server nor an SQLite file",
        "write http://HOST:PORT or sqlite:///FOLDER/mlflow.db (other databases: behind an MLflow server)",
    )


def redacted(text: str) -> str:
    """Returns the text without the passwords of its URIs."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def sqlite_file(uri: str) -> Path | None:
    """Returns the database file of an SQLite URI; None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def connect(uri: str) -> MlflowClient:
    """Returns a client of the tracking store and the registry at one URI, without telemetry and global state."""
    os.environ.update(QUIET)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    uri = store_uri(uri)
    file = sqlite_file(uri)
    if file is not None and file.parent.is_dir():
        _migrate(uri, file.parent)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@functools.cache
def _migrate(uri: str, folder: Path) -> None:
    """Has MLflow make the tables of an SQLite file, once in this process and in one process at a time.

    Two first runs at the same moment would both begin, and one would find the other's half.
    """
    from mlflow import MlflowClient

    with _locked(folder):
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the same block; the system frees the folder when a process ends, however it ends.

    Not the file itself: closing it would take SQLite's own locks away.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk that knows no locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def require_store(uri: str) -> None:
    """Raises DatasetError where the SQLite file of `uri` does not exist: reading commands make none."""
    file = sqlite_file(store_uri(uri))
    if file is not None and not file.exists():
        raise DatasetError(
            f"there is no MLflow store at {uri}",
            "`condense run` and `condense flow fit` make one; or name it with --tracking-uri",
        )


def check_tracking(uri: str) -> None:
    """Asks the store for its experiments, with seconds of patience; an SQLite file is made where there is none.

    One connection that fails is no absent server: it is asked again for CHECK_S.

    Raises:
        TrackingError: naming the URI: unreachable, wrong scheme, no permission, not writable, not a database.
    """
    uri = store_uri(uri)
    file = sqlite_file(uri)
    if file is not None:
        check_writable(file, uri)
    deadline = time.monotonic() + CHECK_S
    with patience(retries=0, timeout_s=CHECK_ANSWER_S), refusals(uri, "cannot be used"):
        while True:
            try:
                connect(uri).search_experiments(max_results=1)
                return
            except failures() as error:
                if not UNREACHED.search(str(error)) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def check_writable(file: Path, uri: str) -> None:
    """Raises TrackingError unless the SQLite file can be written, and artifacts beside it; makes the file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent), closing(sqlite3.connect(file, timeout=2)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"tracking_uri {uri}: the SQLite file cannot be written: {error}", "choose another tracking_uri"
        ) from None
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise TrackingError(f"tracking_uri {uri}: no permission to write artifacts in {file.parent}")


@contextmanager
def patience(*, retries: int, timeout_s: int) -> Iterator[None]:
    """Makes HTTP requests to MLflow in the enclosed block wait this long; MLflow's own patience is many minutes."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s)}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def failures() -> tuple[type[Exception], ...]:
    """Returns what MLflow raises when a store is away or refuses: its own errors, and those of files, sockets, the
    database.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, OSError, SQLAlchemyError)


def refused(error: Exception) -> bool:
    """Returns whether waiting will not help."""
    return getattr(error, "error_code", None) in REFUSALS


@contextmanager
def refusals(uri: str, problem: str) -> Iterator[None]:
    """Turns every failure of MLflow in the enclosed block into one TrackingError that names the URI."""
    os.environ.update(QUIET)
    try:
        yield
    except failures() as error:
        raise TrackingError(f"MLflow at {redacted(uri)} {problem}: {first_line(error)}", _remedy(error)) from None


def first_line(error: Exception) -> str:
    """Returns the start of an error's text, fit for one line of a message."""
    if PAGE.search(str(error)):
        code = re.search(r"error code \d+", str(error))
        return f"a web page answers, not MLflow's API{f' ({code[0]})' if code else ''}"
    line = redacted(reason_of(error))
    return line if len(line) <= 300 else line[:300] + " ..."


def _remedy(error: Exception) -> str:
    text = str(error)
    if re.search(r"error code 401\b|UNAUTHENTICATED", text):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if re.search(r"error code 403\b|PERMISSION_DENIED", text):
        return "ask for permission to write there, or for the host to be allowed"
    if PAGE.search(text):
        return "is this its whole address? A server under a prefix is named with it: http://HOST:PORT/PREFIX"
    if "API request" in text:
        return "is the server running, and is this its address? `condense ui` starts one on an SQLite file"
    return ""
