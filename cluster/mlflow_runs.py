"""Opens MLflow runs: makes experiments, finds runs again by their identity, logs parameters and the source."""

from __future__ import annotations

import getpass
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.tracking_store import ARTIFACTS, connect, refusals, sqlite_file, store_uri
from condense.errors import TrackingError
from condense.workers.tracking import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

IDENTITY = "condense.identity"
PARAMS_PER_BATCH = 100  # MLflow's limits
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
DIGEST_LENGTH = 36


def open_run(
    uri: str,
    *,
    experiment: str,
    name: str,
    identity: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    git_revision: str | None = None,
    versions: Mapping[str, str] | None = None,
    reopen: bool = True,
) -> str:
    """Opens the MLflow run of this identity and returns its id. An unfinished one is opened again, else one is made.

    Args:
        uri: a server or an SQLite file (its artifacts go to `mlartifacts` beside it).
        experiment: created where it does not exist.
        name: the run's name in the UI.
        identity: what makes two runs the same run (config digest and name), kept as tag `condense.identity`.
        params: settings; nested keys become dotted. A reopened run keeps its first value of each.
        tags: further tags.
        git_revision: shown by the UI as the source version.
        versions: package versions, kept as tags `condense.version.NAME`.
        reopen: False always creates one.

    Raises:
        TrackingError: when the store cannot be reached or refuses.
    """
    uri = store_uri(uri)
    if "'" in identity:
        raise TrackingError(f"run identity {identity!r} holds a quote", "leave it out of the run's name")
    all_tags = {
        **(tags or {}),
        **{f"condense.version.{package}": version for package, version in (versions or {}).items()},
        **({"mlflow.source.git.commit": git_revision} if git_revision else {}),
        "mlflow.source.name": "condense",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        IDENTITY: identity,
    }
    all_tags = {key: value[:TAG_LENGTH] for key, value in all_tags.items()}
    with refusals(uri, f"cannot open run {name!r} in experiment {experiment!r}"):
        client = connect(uri)
        experiment_id = _experiment(client, uri, experiment)
        unfinished = client.search_runs(
            [experiment_id],
            f"tags.`{IDENTITY}` = '{identity}' and attributes.status != 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if unfinished and reopen:
            run_id = str(unfinished[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
            logger.info("run %s goes on in MLflow run %s", name, run_id)
            for key, value in all_tags.items():
                client.set_tag(run_id, key, value)
        else:
            run_id = str(client.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id)
        log_params(client, run_id, written(params))
    return run_id


def finished_runs(uri: str, experiment: str, identity: str) -> list[str]:
    """Returns the ids of the runs of this identity that ended as they should, the latest first."""
    with refusals(uri, f"cannot look for runs in experiment {experiment!r}"):
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs = client.search_runs(
            [found.experiment_id],
            f"tags.`{IDENTITY}` = '{identity}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
        return [str(run.info.run_id) for run in runs]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container: no entry among the users
        return f"uid {os.getuid()}"


def is_finished(uri: str, run_id: str) -> bool:
    """Returns whether a run ended as it should; raises TrackingError where it cannot be looked up."""
    with refusals(uri, f"cannot look up run {run_id}"):
        return bool(connect(uri).get_run(run_id).info.status == "FINISHED")


def log_source(
    uri: str,
    run_id: str,
    *,
    name: str,
    digest: str,
    description: Mapping[str, Any],
    profile: Mapping[str, Any] | None = None,
    context: str = "source",
) -> None:
    """Records real data as a dataset input of a run; the same data twice is one input.

    Args:
        name: the source's name, as it was opened ("digits", "parquet:URI").
        digest: of its content; MLflow keeps 36 characters of it, `description` all of them.
        description: where it comes from and what it holds; JSON values.
        profile: counts, shape; shown beside it by the UI.
        context: what the run did with it.

    Raises:
        TrackingError: when the store cannot be reached or refuses.
    """
    with refusals(uri, f"cannot record the source {name!r}"):
        client = connect(uri)
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="condense",
            source=json.dumps({**description, "digest": digest}),
            profile=json.dumps(profile) if profile else None,
        )
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        try:
            return str(client.create_experiment(name, str(file.parent / ARTIFACTS) if file else None))
        except MlflowException:  # another run of a sweep was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"experiment {name!r} was deleted", f"mlflow experiments restore -x {found.experiment_id}")
    return str(found.experiment_id)


def log_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Logs the params that the run does not have; MLflow never changes one."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    changed = [key for key, value in values.items() if known.get(key, value) != value]
    if changed:
        logger.warning("run %s keeps its first value of %s", run_id, ", ".join(changed))
    fresh = [Param(key, value) for key, value in values.items() if key not in known]
    for start in range(0, len(fresh), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=fresh[start : start + PARAMS_PER_BATCH])


def written(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow keeps them, with dotted keys: strings as they are, everything else as JSON."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in flatten(params).items()
    }
    return {
        key: text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 4] + " ..." for key, text in texts.items()
    }
