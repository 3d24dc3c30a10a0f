"""Runs a search, from its config to a front of registered sets: what `condense tune` does."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from cluster import flows
from cluster.ray_connection import connected
from cluster.shared_paths import check_places
from cluster.tracking_store import check_tracking, store_uri
from cluster.versions import check_free
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.pinning import pin
from condense.data.sources import DataSource
from condense.data.splits import check_class_sizes
from condense.errors import ConfigError, SourceError
from condense.files import check_folder_writable
from condense.workers.interruption import RESUMING
from condense.workers.storage import absolute
from tuning import journal as journals
from tuning import publish
from tuning.journal import Journal
from tuning.publish import Outcome
from tuning.samplers import JournalSearcher
from tuning.space import SearchConfig
from tuning.trial import CondenseTrial, Objective, tunable
from tuning.trial_events import EarlyStopper, TrialEvents

# Ray Tune keeps neither its own snapshots nor log files: the journal is the record.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once; --resume goes on
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a run config mean the same in a trial
}
DEATHS = 2  # of its process, for which a trial is started again


@dataclass(frozen=True)
class Layout:
    """What one trial gets, and how many are at work at a time."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    concurrent: int

    @property
    def resources(self) -> dict[str, float]:
        """Of the trial's own process: all where it computes itself, next to nothing where its workers do."""
        if self.workers:
            return {"node:__internal_head__": 0.001}
        return {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})


def run(
    search: SearchConfig,
    *,
    resume: bool = False,
    changed: Callable[[Journal], None] = lambda journal: None,
    objective: Callable[[str], Objective] | None = None,
) -> Outcome:
    """Searches, or goes on; then tests the front's members and points `best` at one of them.

    Args:
        search: resolved.
        resume: go on with a search of this name: finished trials are kept, unfinished ones go on from their last
            checkpoint.
        changed: called in this thread whenever something happened to a trial.
        objective: made from the parent's MLflow run; condensing, unless a test or benchmark wants another cost.

    Raises:
        ConfigError: before anything starts: the search, or that it cannot be begun or resumed; that all trials failed.
        CondenseError: the data, the flow, the tracking store, the storage.
    """
    base = RunConfig.model_validate(search.base)
    source, search = check(search, base)
    journals.check_opening(search, resume=resume)
    with connected_quietly(), journals.open_journal(search, resume=resume) as journal:
        layout = lay_out(search, base)
        parent = publish.open_parent(search, base, source, journal)
        objective_of_trials = (objective or (lambda run_id: CondenseTrial(run_id, search.folder / "results")))(parent)
        try:
            _tune(search, journal, layout, objective_of_trials, lambda: changed(journal), places(base, layout))
            return publish.publish(search, base, journal, layout.cpus_per_worker, layout.gpus_per_worker)
        except BaseException as error:
            if not isinstance(error, Exception):
                error.add_note(f"stopped with {progress_of(search, journal)}; {RESUMING} goes on")
            publish.close_parent(base, parent, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise


def progress_of(search: SearchConfig, journal: Journal) -> str:
    """Returns how far a search is, in words."""
    return f"{len(journal.over)} of {search.trials} trials over"


def check(search: SearchConfig, base: RunConfig) -> tuple[DataSource, SearchConfig]:
    """Returns the source, after every check that needs no cluster and writes nothing; and the search held to its flow's
    digest.

    Raises:
        CondenseError: naming the key.
    """
    if base.tracking_uri == "none":
        raise ConfigError("base.tracking_uri is none, and a search keeps its sets in MLflow", "set it to a store")
    check_places(base)
    check_folder_writable(base.output, "set base.output=FOLDER")
    check_tracking(base.tracking_uri)
    check_free(base.tracking_uri, search.name)
    first = {key: domain.edges[0] for key, domain in search.space.items()}
    run = flows.resolved(search.run_config(first))
    source, flow = open_checked(run)
    if flow is None:
        raise ConfigError(
            f"no flow measures images of shape {source.shape}, and bits are what a search trades for accuracy",
            "set base.data.image_size or base.flow",
        )
    if "images_per_class" in search.space:
        largest = int(max(search.space["images_per_class"].edges))
        try:
            check_class_sizes(source.class_counts, largest, source.class_names)
        except SourceError as error:
            raise ConfigError(f"key 'space.images_per_class': {error.problem}", error.remedy) from None
    held = {"flow": run.flow, "flow_digest": pin(run, flow).flow_digest}
    return source, search.model_copy(update={"base": {**search.base, **held}})


def lay_out(search: SearchConfig, base: RunConfig) -> Layout:
    """Returns how many trials the connected cluster holds, and what each gets.

    `workers: auto` is one Ray Train worker a trial; `workers: 0` computes in the trial's own process. Without
    `gpus_per_worker`, a cluster's GPUs are shared out evenly over `concurrent` trials, one each where that is not set.

    Raises:
        ConfigError: the cluster holds fewer trials than are asked for.
    """
    total = ray.cluster_resources()
    cores, cards = int(total.get("CPU", 0)), total.get("GPU", 0.0)
    workers = 1 if base.workers == "auto" else int(base.workers)
    each = max(1, workers)
    cpus = base.cpus_per_worker or 1
    gpus = base.gpus_per_worker
    if gpus is None:
        gpus = min(1.0, cards / ((search.concurrent or 1) * each)) if cards else 0.0
    held = cores // (each * cpus)
    if gpus > 0:
        held = min(held, int(cards / (each * gpus) + 1e-9))
    concurrent = search.concurrent or held
    if concurrent > held or not held:
        raise ConfigError(
            f"key 'concurrent': {search.concurrent or 1} trials of {each} x ({cpus} CPUs, {gpus:g} GPUs)"
            f" do not fit into the cluster's {cores} CPUs and {cards:g} GPUs",
            "lower concurrent, base.workers, base.cpus_per_worker or base.gpus_per_worker",
        )
    return Layout(workers, cpus, gpus, concurrent)


def places(base: RunConfig, layout: Layout) -> dict[str, Any]:
    """Returns the settings of every trial that say where it works; a trial's process may start in another folder."""
    return {
        "workers": layout.workers,
        "cpus_per_worker": layout.cpus_per_worker,
        "gpus_per_worker": layout.gpus_per_worker,
        "output": str(base.output.absolute()),
        "storage": absolute(base.storage),
        "tracking_uri": store_uri(base.tracking_uri),
    }


def connected_quietly() -> Any:
    """`connected`, with what Ray Tune reads from the environment set before."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    return connected()


def _tune(
    search: SearchConfig,
    journal: Journal,
    layout: Layout,
    objective: Objective,
    changed: Callable[[], None],
    where: dict[str, Any],
) -> None:
    over = len(journal.over)
    left_s = None if search.time_budget_s is None else search.time_budget_s - journal.elapsed_s
    if over >= search.trials or (left_s is not None and left_s <= 0):
        return
    scratch = f"sitting-{time.time_ns()}"
    try:
        tune.Tuner(
            tune.with_resources(tunable(objective), layout.resources),
            tune_config=tune.TuneConfig(
                search_alg=JournalSearcher(search, journal, where),
                scheduler=EarlyStopper(search, journal, changed),
                num_samples=search.trials - over,
                max_concurrent_trials=layout.concurrent,
                time_budget_s=left_s,
                # A process that computes itself has imported torch and can take the next trial; one whose workers
                # compute cannot leave a run that is stopped, so it ends with it.
                reuse_actors=layout.workers == 0,
                trial_dirname_creator=lambda trial: f"{trial.config['number']:05d}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=scratch,
                storage_path=str(search.folder),
                callbacks=[TrialEvents(journal, changed)],
                failure_config=tune.FailureConfig(max_failures=DEATHS),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(search.folder / scratch, ignore_errors=True)
