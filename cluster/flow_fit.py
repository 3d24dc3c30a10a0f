"""Fits a flow, from its recipe to a registered version: what `condense flow fit` does with tracking or workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster import flows, tracking
from cluster.repeats import find_repeat
from cluster.shared_paths import check_places
from cluster.tracked_runs import open_tracked
from cluster.tracking_store import check_tracking
from cluster.versions import FLOW, Version, check_free
from condense.condensation import provenance
from condense.files import scratch_folder, write_whole
from condense.flow import fit as in_process
from condense.flow.fit import FitResult, Fitted, open_mixture, store, train
from condense.flow.mixture import Mixture
from condense.flow.recipe import FlowFitConfig
from condense.flow.repeats import fitted_before
from condense.flow.store import check_writable
from condense.settings import validate, without_passwords
from condense.workers.context import Progress, WorkerContext
from condense.workers.interruption import RESUMING
from condense.workers.storage import StoredCheckpoints
from condense.workers.tracking import NullTracker, Tracker

EXPERIMENT = "condense-flows"


@dataclass(frozen=True)
class Finished:
    """What a fit left: the stored flow, its MLflow run and version where it was tracked."""

    result: FitResult
    run_id: str | None
    version: Version | None


def fit(
    config: FlowFitConfig, progress: Callable[[Progress], None], *, resume: bool = False, anew: bool = True
) -> Finished:
    """Trains a flow in this process or on Ray Train workers, stores it, registers it as flow-NAME.

    Everything that can be wrong before work starts (output, tracking store, sources) is asked first. Unless `anew`, the
    flow that the same recipe made of the same data before is the result.

    Raises:
        CondenseError: see the parts. The MLflow run is marked FAILED, or KILLED on an interrupt; with `resume` the same
            recipe goes on in it from its last checkpoint.
    """
    check_places(config)
    check_writable(config.output)
    tracked = config.tracking_uri != "none"
    if tracked:
        check_tracking(config.tracking_uri)
        check_free(config.tracking_uri, f"flow-{config.name}", FLOW)
    mixture = open_mixture(config)
    run = f"flow-{config.identity()}"
    if not anew and (made := _fitted_before(config, mixture, run)) is not None:
        return made
    run_id, tracker = _open(config, run, resume) if tracked else (None, NullTracker())
    try:
        result = _fit(config, run, tracker, progress, resume)
        version = None
        if run_id is not None:
            for name, description in mixture.descriptions.items():
                tracking.log_source(
                    config.tracking_uri,
                    run_id,
                    name=name,
                    digest=result.card["sources"][name],
                    description=without_passwords(description),
                )
            version = flows.register_flow(config.tracking_uri, run_id, result)
        tracker.close("FINISHED")
    except BaseException as error:
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    return Finished(result, run_id, version)


def _fitted_before(config: FlowFitConfig, mixture: Mixture, run: str) -> Finished | None:
    """Returns what an earlier fit made, its file at the output again; None where it is to be trained."""
    if config.tracking_uri == "none":
        made = fitted_before(config, mixture, config.output)
        return None if made is None else Finished(FitResult(config.output, *made, repeated=True), None, None)

    def read(files: dict[str, Path]) -> tuple[str, dict[str, Any]] | None:
        return fitted_before(config, mixture, files[flows.FILE]) if flows.FILE in files else None

    with scratch_folder() as beside:
        name = f"flow-{config.name}"
        repeat = find_repeat(config.tracking_uri, EXPERIMENT, run, name, FLOW, beside, read)
        if repeat is None:
            return None
        write_whole(config.output, repeat.files[flows.FILE].read_bytes())
    card, digest = repeat.made, repeat.version.content_digest
    return Finished(FitResult(config.output, digest, card, repeated=True), repeat.version.run_id, repeat.version)


def _fit(
    config: FlowFitConfig, run: str, tracker: Tracker, progress: Callable[[Progress], None], resume: bool
) -> FitResult:
    if config.workers == 0:
        return in_process.fit(config, resume=resume, progress=progress, tracker=tracker)
    from cluster.ray_workers import on_workers  # Ray is imported only where it is used

    kept = StoredCheckpoints(config.storage, run)
    if not resume:
        kept.forget()
    job = partial(_train, config.model_dump(mode="json"))
    fitted = on_workers(job, run, config, config.batch_size, tracker, progress, again=RESUMING)
    assert isinstance(fitted, Fitted)
    result = store(fitted, config)
    kept.forget()
    return result


def _train(values: dict[str, Any], context: WorkerContext) -> Fitted | None:
    return train(validate(FlowFitConfig, values, where="the recipe"), context)


def _open(config: FlowFitConfig, run: str, resume: bool) -> tuple[str, Tracker]:
    spool = Path(config.storage).absolute() / f"{run}.spool.jsonl" if "://" not in config.storage else None
    return open_tracked(
        config.tracking_uri,
        spool,
        experiment=EXPERIMENT,
        name=config.name,
        identity=run,
        params=config.as_dict(),
        tags={"source": ", ".join(without_passwords(list(config.sources)))},
        git_revision=provenance.git_revision(),
        versions=provenance.versions(),
        reopen=resume,
    )
