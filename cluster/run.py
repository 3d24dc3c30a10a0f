"""One tracked run from config to registered version: what `condense run` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import flows, registry, report, tracking
from cluster.places import check_places
from cluster.registry import DatasetVersion
from cluster.store import check_tracking
from condense import local, provenance
from condense.collective import class_slice
from condense.condensation import open_checked
from condense.config import RunConfig
from condense.files import check_folder_writable
from condense.parquet import CondensedDataset
from condense.sources import DataSource
from condense.surroundings import Progress
from condense.tracking import NullTracker, Tracker
from condense.yardstick import pinned

EXPERIMENT = "condense"


@dataclass(frozen=True)
class Finished:
    """What a run left: the dataset, the folder that holds it, its MLflow run and version where it was tracked."""

    dataset: CondensedDataset
    folder: Path
    run_id: str | None
    version: DatasetVersion | None


def run(config: RunConfig, progress: Callable[[Progress], None]) -> Finished:
    """Condenses, writes the folder, registers the version.

    Everything that can be wrong before work starts (data, flow, output folder, tracking store) is asked first.

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
    config = pinned(config, flow)
    if isinstance(config.workers, int) and config.workers > 0:
        class_slice(len(source.class_names), 0, config.workers)  # refused here, not after Ray has started
    name = config.dataset_name(source.name)
    run_id, tracker = _open(config, source, name, flow) if tracked else (None, NullTracker())
    try:
        dataset = _condense(config, source, tracker, progress)
        folder = report.write_folder(local.folder_of(config, source.name), dataset, name=name)
        version = None
        if run_id is not None:
            version = _register(config, run_id, name, folder, dataset)
        tracker.close("FINISHED")
    except BaseException as error:
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    local.forget_checkpoints(config)
    return Finished(dataset, folder, run_id, version)


def _condense(
    config: RunConfig, source: DataSource, tracker: Tracker, progress: Callable[[Progress], None]
) -> CondensedDataset:
    if config.workers == 0:
        return local.condense_here(config, tracker, progress)
    from cluster.trainer import train  # Ray is imported only where it is used

    return train(config, len(source.class_names), tracker, progress)


def _open(config: RunConfig, source: DataSource, name: str, flow: str | None) -> tuple[str, Tracker]:
    run_id = tracking.open_run(
        config.tracking_uri,
        experiment=EXPERIMENT,
        name=f"{name} bits_weight={config.bits_weight:g} seed={config.seed}",
        identity=config.identity(),
        params=config.as_dict(),
        tags={"source": source.name, "flow": flow or "none"},
        git_revision=provenance.git_revision(),
        versions=provenance.versions(),
    )
    spool = Path(config.storage).absolute() if "://" not in config.storage else None
    return run_id, tracking.MLflowTracker(
        config.tracking_uri, run_id, spool=spool and spool / f"{local.run_name(config)}.spool.jsonl"
    )


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
        "bits_weight": f"{config.bits_weight:g}",
        "seed": str(config.seed),
        "validation_accuracy": f"{facts['validation']['accuracy_mean']:.4f}",
        "test_accuracy": f"{facts['evaluation']['accuracy_mean']:.4f}",
        "evaluation_recipe": facts["evaluation"]["recipe"],
    }
    if facts["flow"] is not None:
        tags |= {"flow": facts["flow"]["digest"], "bits_per_dim": f"{facts['bits']['per_dim_after']:.4f}"}
        tags |= {"bits_per_set": f"{facts['bits']['per_set']:.0f}"}
    version = registry.register(config.tracking_uri, run_id, name, folder, tags)
    registry.update_best(config.tracking_uri, name)
    return version
