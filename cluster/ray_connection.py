"""Connects to a Ray cluster, or starts one.

A job works on the cluster that it was submitted to, any other process on the one that RAY_ADDRESS names. Without either
it gets a local cluster of its own.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from condense.errors import ClusterError, reason_of

# Between looks of Ray Train's controller at its workers: a lost one and the end of a run wait for the next. Checkpoints
# and progress do not go through it. At 0.2 s the controller alone spent twice as much of a core as at 1 s.
POLL_S = 1.0

# What a cluster that Condense starts itself is told: report nothing to anybody. It lets nobody in without its token
# unless RAY_AUTH_MODE says otherwise: Ray's default, and set here it would come too late, as importing Ray reads it.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_S),
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative source means the same to a worker as to its driver
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nobody watches this cluster from outside, and its one machine is not taken away with notice.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# These matter on any cluster: Ray Train reads them here, in the driver.
TRAIN = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_ENABLE_PRINT_PATCH", "RAY_CHDIR_TO_TRIAL_DIR")


def own_cluster() -> bool:
    """Returns whether this process starts a cluster of its own: RAY_ADDRESS names none."""
    return not os.environ.get("RAY_ADDRESS")


def cluster_in_words() -> str:
    """Returns where the connected cluster is, for a person."""
    if own_cluster():
        return "on a Ray cluster of its own, on this machine"
    return f"on the Ray cluster at {ray.get_runtime_context().gcs_address}, as RAY_ADDRESS says"


@contextmanager
def connected() -> Iterator[None]:
    """Connects the enclosed block to Ray: to the cluster that is connected or that RAY_ADDRESS names, else to a local
    one.

    Inside `ray job submit`, Ray sets RAY_ADDRESS, so a job works on the cluster that it was submitted to.

    Raises:
        ClusterError: RAY_ADDRESS names a cluster that does not answer or does not take the token.
    """
    address = os.environ.get("RAY_ADDRESS")
    for key, value in QUIET.items():
        if key in TRAIN or not (address or ray.is_initialized()):
            os.environ.setdefault(key, value)
    if ray.is_initialized():
        yield
        return
    ended_by = signal.getsignal(signal.SIGTERM)  # Ray puts its own in place
    if address:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {reason_of(error)}",
                "is it running, and does RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH hold its token?"
                " Unset RAY_ADDRESS to start a local one",
            ) from None
    else:
        _make_token()
        ray.init(address="local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ended_by)
    try:
        yield
    finally:
        ray.shutdown()


def _make_token() -> None:
    """A token that its owner alone can read, where Ray would make one that everybody on this machine can."""
    if (
        os.environ.get("RAY_AUTH_MODE", "token") != "token"
        or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    ):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return
    except OSError as error:
        raise ClusterError(
            f"no token for Ray can be written to {path}: {error}", "set RAY_AUTH_TOKEN, or HOME to a folder of yours"
        ) from None
