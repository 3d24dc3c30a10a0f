"""Publishes a search in MLflow: a parent run over its trials, and the alias `best`.

The members of the front are tested and marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from cluster import registry, tracking
from cluster.registry import DatasetVersion
from cluster.run import EXPERIMENT, PARENT
from cluster.tracking_store import connect, refusals
from condense.condensation import provenance
from condense.condensation.config import RunConfig
from condense.condensation.reproduce import judge_dataset
from condense.data.sources import DataSource
from condense.errors import ConfigError
from condense.files import scratch_folder
from condense.reports.dataset_folder import write_folder
from condense.settings import digest
from condense.synthetic.dataset import PARQUET, read_dataset
from condense.workers.memory import keep_freed_memory
from condense.workers.tracking import Status
from tuning import report
from tuning.importance import Importance, importance
from tuning.journal import OVER, Journal, Trial
from tuning.score import front
from tuning.space import SearchConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARETO = "pareto"  # tag of a version on the front


@dataclass(frozen=True)
class Outcome:
    """Where a search ended.

    members: the front's trials, by rising bits, each tested. best: what the alias `best` points to; None where no
        trial keeps within the mode's number. parent: the MLflow run. missing: trials that are not over yet.
    """

    members: tuple[Trial, ...]
    best: Trial | None
    parent: str
    importance: Importance
    missing: int


def open_parent(search: SearchConfig, base: RunConfig, source: DataSource, journal: Journal) -> str:
    """Returns the search's own MLflow run: a new one, or that of its earlier sittings, running."""
    if journal.parent_run is not None:
        with refusals(base.tracking_uri, "cannot go on with the search's run"):
            connect(base.tracking_uri).update_run(journal.parent_run, status="RUNNING")
        return journal.parent_run
    run_id = tracking.open_run(
        base.tracking_uri,
        experiment=EXPERIMENT,
        name=f"{search.name} search",
        identity=f"search-{digest(search.decisive())[:16]}-{search.name}",
        params=search.as_dict(),
        tags={"source": source.name, "kind": "search"},
        git_revision=provenance.git_revision(),
        versions=provenance.versions(),
    )
    journal.belongs_to(run_id)
    return run_id


def close_parent(base: RunConfig, run_id: str, status: Status) -> None:
    """Ends the search's MLflow run."""
    with refusals(base.tracking_uri, "cannot end the search's run"):
        connect(base.tracking_uri).set_terminated(run_id, status)


def publish(search: SearchConfig, base: RunConfig, journal: Journal, cpus: int, gpus: float) -> Outcome:
    """Tests the front's members, marks them, points `best`, and fills the parent run.

    The test split is read here and nowhere else, once for each member; nothing is chosen by it.

    Args:
        cpus, gpus: what testing one member gets.

    Raises:
        ConfigError: no trial finished; says why the first one failed.
        CondenseError: the store, or the test data.
    """
    assert journal.parent_run is not None
    finished = journal.by_status("finished")
    if not finished:
        reasons = [trial.reason for trial in journal.by_status("failed")]
        raise ConfigError(
            f"search {search.name!r} has no finished trial: {len(reasons)} failed"
            + (f", the first because: {reasons[0]}" if reasons else ""),
            "give it more time_budget_s, or mend the reason and start under another name",
        )
    points = [trial.point for trial in finished]
    members = [finished[index] for index in front(points)]
    _judge(search, base, journal, members, ray.remote(num_cpus=cpus, num_gpus=gpus)(_tested))
    best = search.aim.best(points)
    if "version" in finished[0].result:  # an objective without sets has no versions to mark
        registry.mark(base.tracking_uri, search.name, PARETO, "true", [member.result["version"] for member in members])
        if best is not None:
            registry.promote(base.tracking_uri, search.name, finished[best].result["version"])
    found = importance(search, journal)
    _fill_parent(search, base, journal, members, finished[best] if best is not None else None, found)
    missing = max(0, search.trials - len(journal.over))
    return Outcome(tuple(members), None if best is None else finished[best], journal.parent_run, found, missing)


def _judge(search: SearchConfig, base: RunConfig, journal: Journal, members: Sequence[Trial], test: Any) -> None:
    """Tests the members that are not tested yet, side by side on the cluster, and completes cards and versions."""
    waiting = {
        test.remote(member.result["folder"], search.name): member
        for member in members
        if "folder" in member.result and "test_accuracy" not in member.result
    }
    while waiting:
        (task, *_), _ = ray.wait(list(waiting), num_returns=1)
        member = waiting.pop(task)
        found = ray.get(task)
        version = DatasetVersion(search.name, member.result["version"], member.result["files_run_id"])
        tags = {"test_accuracy": f"{found['accuracy_mean']:.4f}"}
        registry.complete(base.tracking_uri, version, member.result["folder"], tags)
        numbers = {"test/accuracy": found["accuracy_mean"], "test/accuracy_std": found["accuracy_std"]}
        with refusals(base.tracking_uri, "cannot log a test accuracy"):
            for name, value in numbers.items():
                if value is None:  # one learner has no deviation
                    continue
                connect(base.tracking_uri).log_metric(member.result["run_id"], name, value)
        journal.judged(member.number, {"test_accuracy": found["accuracy_mean"], "test_std": found["accuracy_std"]})


def _tested(folder: str, name: str) -> dict[str, Any]:
    """Evaluates a set on its test split and writes its folder again; what was found, also where it was before."""
    keep_freed_memory()
    dataset = read_dataset(Path(folder) / PARQUET)
    if "evaluation" not in dataset.provenance:  # else a sitting was killed between writing this and its journal
        dataset = judge_dataset(dataset)
        write_folder(folder, dataset, name=name)
    return dict(dataset.provenance["evaluation"])


def _fill_parent(
    search: SearchConfig,
    base: RunConfig,
    journal: Journal,
    members: Sequence[Trial],
    best: Trial | None,
    found: Importance,
) -> None:
    run_id = journal.parent_run
    assert run_id is not None
    trials = list(journal.trials.values())
    numbers: dict[str, float] = {f"trials/{status}": len(journal.by_status(status)) for status in OVER}
    numbers |= {"front/members": len(members), "seconds": journal.elapsed_s}
    if best is not None:
        numbers |= {"best/validation_accuracy": best.point.accuracy, "best/bits": best.point.bits}
        if "test_accuracy" in best.result:
            numbers["best/test_accuracy"] = best.result["test_accuracy"]
    with scratch_folder() as folder, refusals(base.tracking_uri, "cannot keep the search's results"):
        report.write(folder, search, trials, members, best, found)
        client = connect(base.tracking_uri)
        client.log_artifacts(run_id, folder, "search")
        for name, value in numbers.items():
            client.log_metric(run_id, name, value, step=len(trials))
        _end_trials(client, run_id, journal)
        client.set_terminated(run_id, "FINISHED")


def _end_trials(client: MlflowClient, parent: str, journal: Journal) -> None:
    """Says in the MLflow runs of stopped and failed trials how they ended; their processes may have died."""
    experiment = client.get_run(parent).info.experiment_id
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", page_token=token)
        for found in page:
            trial = journal.trials[int(found.data.tags["trial"])]
            if trial.status in ("stopped", "failed") and trial.status not in found.data.tags:
                client.set_tag(found.info.run_id, trial.status, trial.reason[:500])
                client.set_terminated(found.info.run_id, "KILLED" if trial.status == "stopped" else "FAILED")
        token = page.token
        if not token:
            return
