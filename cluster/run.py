"""Runs one condensation with tracking, from its config to a registered version: what `condense run` does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from cluster import flows, registry, tracking
from cluster.registry import DatasetVersion
from cluster.repeats import find_repeat
from cluster.shared_paths import check_places
from cluster.tracked_runs import open_tracked
from cluster.tracking_store import check_tracking, connect, patience
from cluster.versions import DATASET, check_free, is_there
from condense.condensation import provenance
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.in_process import condense_here, folder_of, forget_checkpoints, run_name
from condense.condensation.pinning import pin
from condense.condensation.repeats import made_before, unless_made_meanwhile
from condense.condensation.space import check_space_of
from condense.data.sources import DataSource
from condense.errors import TrackingError
from condense.files import check_folder_writable, scratch_folder
from condense.reports.dataset_folder import completed, write_folder
from condense.settings import validate
from condense.synthetic.dataset import PARQUET, CondensedDataset, read_dataset
from condense.workers.context import Progress
from condense.workers.interruption import SAME
from condense.workers.tracking import NullTracker, Tracker

logger = logging.getLogger(__name__)

EXPERIMENT = "condense"
REGISTER_PATIENCE_S = 120.0  # a server that is restarted is back by then
PARENT = "mlflow.parentRunId"  # tag by which MLflow nests runs


@dataclass(frozen=True)
class Finished:
    """What a run left: the dataset, the folder that holds it, its MLflow run and version where it was tracked."""

    dataset: CondensedDataset
    folder: Path
    run_id: str | None
    version: DatasetVersion | None
    repeated: bool = False  # all of it was there before, and nothing was computed


@dataclass(frozen=True)
class TrialOf:
    """The search that a run is a trial of: its MLflow run, and the number of the trial."""

    run_id: str
    number: int


def run(
    config: RunConfig,
    progress: Callable[[Progress], None],
    *,
    trial_of: TrialOf | None = None,
    keep: Callable[[Finished], None] | None = None,
    anew: bool = True,
) -> Finished:
    """Condenses, writes the folder, registers the version.

    Everything that can be wrong before work starts (data, flow, output folder, tracking store) is asked first.

    Args:
        progress: called in this process.
        trial_of: nests the MLflow run in the search's, which moves the alias `best` itself.
        keep: called with the result before the run counts as over: a kill in between leaves a run to go on with.
        anew: False returns what an earlier run of the same config made of the same data, if all of it is there.

    Raises:
        CondenseError: see the parts. The MLflow run is marked FAILED, or KILLED on an interrupt; the same config goes
            on from its last checkpoint.
    """
    check_places(config)
    check_folder_writable(config.output, "set output=FOLDER")
    tracked = config.tracking_uri != "none"
    if tracked:
        check_tracking(config.tracking_uri)
    config = flows.resolved(config)
    source, flow = open_checked(config)
    config = pin(config, flow)
    name = config.dataset_name(source.name)
    if tracked:
        check_free(config.tracking_uri, name)
    if not anew and (made := _made_before(config, source, name)) is not None:
        return made
    check_space_of(config, source)
    run_id, tracker = _open(config, source.name, name, flow, trial_of) if tracked else (None, NullTracker())
    try:
        dataset = _condense(config, source, tracker, progress)
        tracker.rest()
        folder = write_folder(folder_of(config, source.name), dataset, name=name)
        version = None
        if run_id is not None:
            version = _register_patiently(config, run_id, name, folder, dataset, best=trial_of is None)
        finished = Finished(dataset, folder, run_id, version)
        if keep is not None:
            keep(finished)
        tracker.close("FINISHED")
        if isinstance(tracker, tracking.MLflowTracker) and tracker.waiting:
            logger.warning("when the store is back, this sends them: %s", _by_hand(config, folder))
    except BaseException as error:
        if not isinstance(error, Exception) and not hasattr(error, "__notes__"):
            error.add_note(f"stopped after its last step, before it was registered; {SAME} goes on")
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    forget_checkpoints(config)
    return finished


def register_folder(uri: str, folder: Path) -> DatasetVersion:
    """Registers what a run has written but could not register: what is left of it when its server is back.

    What waits in the run's spool is sent first; its MLflow run ends as FINISHED. Doing it twice changes nothing.

    Args:
        uri: a server or an SQLite file.
        folder: what the run wrote, with its data.parquet.

    Raises:
        DatasetError: no condensed dataset there.
        TrackingError: the store cannot be reached or refuses.
    """
    check_tracking(uri)
    dataset = read_dataset(folder / PARQUET)
    facts = dataset.provenance
    stated = validate(RunConfig, {**facts["config"], "tracking_uri": uri}, where=f"{folder}, its config")
    name = stated.dataset_name(facts["source"]["name"])
    flow = facts["flow"]["name"] if facts["flow"] else None
    for known in registry.list_datasets(uri):
        over = known.name == name and known.content_digest == facts["content_digest"] and not _spool(stated).exists()
        if over and is_there(connect(uri), known) and tracking.is_finished(uri, known.run_id):
            return known
    run_id, tracker = _open(stated, facts["source"]["name"], name, flow, None)
    version = _register(stated, run_id, name, folder, dataset)
    registry.update_best(uri, name)
    tracker.close("FINISHED")
    forget_checkpoints(stated)
    return version


def _made_before(config: RunConfig, source: DataSource, name: str) -> Finished | None:
    """Returns what an earlier run made, its folder whole again; None where it is to be computed."""
    folder, uri = folder_of(config, source.name), config.tracking_uri
    if uri == "none":
        made = made_before(config, source)
        return None if made is None else Finished(made, completed(folder, made, name=name), None, None, repeated=True)

    def read(files: dict[str, Path]) -> tuple[str, CondensedDataset] | None:
        made = made_before(config, source, files[PARQUET]) if PARQUET in files else None
        return None if made is None else (str(made.provenance["content_digest"]), made)

    with scratch_folder() as beside:
        repeat = find_repeat(uri, EXPERIMENT, config.identity(), name, DATASET, beside, read)
    if repeat is None:
        return None
    completed(folder, repeat.made, name=name)
    return Finished(repeat.made, folder, repeat.version.run_id, repeat.version, repeated=True)


def _condense(
    config: RunConfig, source: DataSource, tracker: Tracker, progress: Callable[[Progress], None]
) -> CondensedDataset:
    if config.workers == 0:
        return unless_made_meanwhile(config, source, lambda: condense_here(config, tracker, progress))
    from cluster.trainer import train  # Ray is imported only where it is used

    classes = len(source.class_names)
    return unless_made_meanwhile(config, source, lambda: train(config, classes, tracker, progress))


def _open(
    config: RunConfig, source_name: str, name: str, flow: str | None, trial_of: TrialOf | None
) -> tuple[str, Tracker]:
    nested = {} if trial_of is None else {PARENT: trial_of.run_id, "trial": str(trial_of.number)}
    title = name if trial_of is None else f"{name} trial {trial_of.number}"
    return open_tracked(
        config.tracking_uri,
        _spool(config),
        experiment=EXPERIMENT,
        name=f"{title} bits_weight={config.bits_weight:g} seed={config.seed}",
        identity=config.identity(),
        params=config.as_dict(),
        tags={"source": source_name, "flow": flow or "none", **nested},
        git_revision=provenance.git_revision(),
        versions=provenance.versions(),
    )


def _spool(config: RunConfig) -> Path:
    folder = config.output if "://" in config.storage else Path(config.storage)  # nothing is appended to an object
    return folder.absolute() / f"{run_name(config)}.spool.jsonl"


def _by_hand(config: RunConfig, folder: Path) -> str:
    return f"condense datasets register {quote(str(folder))} --tracking-uri {quote(config.tracking_uri)}"


def _register_patiently(
    config: RunConfig, run_id: str, name: str, folder: Path, dataset: CondensedDataset, *, best: bool
) -> DatasetVersion:
    """`_register`, again and again while the server is away, for as long as REGISTER_PATIENCE_S."""
    deadline, pause = time.monotonic() + REGISTER_PATIENCE_S, 1.0
    while True:
        try:
            with patience(retries=1, timeout_s=30):
                version = _register(config, run_id, name, folder, dataset)
                if best:
                    registry.update_best(config.tracking_uri, name)
                return version
        except TrackingError as error:
            if time.monotonic() + pause > deadline:
                raise TrackingError(
                    f"{error.problem}\n  the dataset is whole in {folder}, and not yet registered",
                    f"when the store is back: {_by_hand(config, folder)}",
                ) from None
            logger.warning("not registered yet, next attempt in %.0f s: %s", pause, error.problem)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)


def _register(config: RunConfig, run_id: str, name: str, folder: Path, dataset: CondensedDataset) -> DatasetVersion:
    facts = dataset.provenance
    tracking.log_source(
        config.tracking_uri,
        run_id,
        name=config.source,
        digest=facts["source"]["digest"],
        description=facts["source"],
        profile={"train_class_counts": facts["source"]["train_class_counts"], "shape": facts["source"]["shape"]},
    )
    tags = {
        "content_digest": facts["content_digest"],
        "source": facts["source"]["name"],
        "images_per_class": str(config.images_per_class),
        "bits_weight": f"{facts['bits']['weight']:g}",
        "seed": str(config.seed),
        "validation_accuracy": f"{facts['validation']['accuracy_mean']:.4f}",
        "evaluation_recipe": config.evaluation.recipe,
    }
    if "evaluation" in facts:
        tags["test_accuracy"] = f"{facts['evaluation']['accuracy_mean']:.4f}"
    if facts["flow"] is not None:
        tags |= {"flow": facts["flow"]["digest"], "bits_per_dim": f"{facts['bits']['per_dim_after']:.4f}"}
        tags |= {"bits_per_set": f"{facts['bits']['per_set']:.0f}"}
    return registry.register(config.tracking_uri, run_id, name, folder, tags)
