"""The public functions of `import condense`. The commands call the same ones.

Each function starts the layer that its settings ask for: a run without workers and without tracking needs neither Ray
nor MLflow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.in_process import condense_here, folder_of, forget_checkpoints
from condense.condensation.pinning import pin
from condense.condensation.repeats import made_before, unless_made_meanwhile
from condense.condensation.reproduce import Reproduction, evaluate_dataset
from condense.data.config import DataConfig
from condense.data.forms import FORMS
from condense.errors import CondenseError, ConfigError, DatasetError
from condense.files import check_folder_writable, scratch_folder
from condense.flow.fit import FitResult
from condense.flow.fit import fit as fit_here
from condense.flow.recipe import FlowFitConfig
from condense.flow.store import REGISTERED
from condense.learners.recipes import RECIPES
from condense.lookup import STORE, dataset_file, flow_file, needs_no_cluster
from condense.reports.dataset_folder import completed, write_folder
from condense.reports.measurement import Measured, measure_named, source_named
from condense.settings import Settings, override_, resolve, validate
from condense.synthetic.dataset import PARQUET, CondensedDataset, read_dataset
from condense.workers.context import Progress
from condense.workers.memory import keep_freed_memory
from condense.workers.tracking import NullTracker

if TYPE_CHECKING:
    from tuning.journal import Journal
    from tuning.publish import Outcome
    from tuning.space import SearchConfig

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        dataset: the condensed dataset, with its provenance.
        folder: where its Parquet, card and figures are.
        version: NAME/NUMBER in MLflow's registry; None without tracking.
        run_id: the MLflow run that holds the version; None without tracking.
        repeated: whether an earlier run had made all of it, and nothing was computed.
    """

    dataset: CondensedDataset
    folder: Path
    version: str | None = None
    run_id: str | None = None
    repeated: bool = False

    @property
    def path(self) -> Path:
        """The Parquet file."""
        return self.folder / PARQUET


@dataclass(frozen=True)
class FlowFit:
    """What a fit left: the stored flow, and its version and run in MLflow where it was tracked.

    Attributes:
        result: path, digest and card of the flow.
        reference: models:/NAME@best or models:/NAME/NUMBER, which names the flow in a config; None without tracking.
        version: NAME/NUMBER.
        run_id: the MLflow run that holds the version.
        repeated: whether an earlier fit had made it, and nothing was computed.
    """

    result: FitResult
    reference: str | None = None
    version: str | None = None
    run_id: str | None = None
    repeated: bool = False


def run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    anew: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Condenses a dataset, writes its folder and registers it in MLflow.

    An interrupted run goes on from its last checkpoint when it is called again with the same config. What a finished
    one made of the same data is returned at once.

    Args:
        config: the settings: a RunConfig, a dictionary, or the path of a YAML file.
        overrides: further settings as "key=value"; nested keys have dots.
        anew: compute it even if an earlier run made it.
        progress: called with where the run stands.

    Raises:
        CondenseError: with what is wrong and what to do. Data, flow, output folder and tracking store are asked before
            any work.
    """
    resolved, tell = resolve_config(RunConfig, config, overrides), progress or _ignore
    if needs_no_cluster(resolved):
        return _run_here(resolved, tell, anew)
    from cluster.run import run as run_tracked

    finished = run_tracked(resolved, tell, anew=anew)
    version, repeated = finished.version, finished.repeated
    if version is None:
        return RunResult(finished.dataset, finished.folder, repeated=repeated)
    return RunResult(finished.dataset, finished.folder, version.reference, version.run_id, repeated)


def tune(
    config: SearchConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    changed: Callable[[Journal], None] | None = None,
) -> Outcome:
    """Searches for the trade-off between accuracy and bits; ends in a front of registered datasets.

    Args:
        config: the search: a SearchConfig, or the path of a YAML file.
        overrides: further settings as "key=value"; those of the run that trials share begin with "base.".
        resume: go on with the search of this name.
        changed: called with the search's journal when a trial began, reported or ended.

    Raises:
        CondenseError: with what is wrong and what to do.
    """
    from tuning import search
    from tuning.space import SearchConfig, resolve_search

    resolved = config if isinstance(config, SearchConfig) else resolve_search(Path(config), overrides)
    return search.run(resolved, resume=resume, changed=changed or (lambda journal: None))


def evaluate(
    dataset: CondensedDataset | str | Path,
    *,
    source: str | None = None,
    recipe: str | None = None,
    learners: int | None = None,
    tracking_uri: str = STORE,
) -> Reproduction:
    """Trains fresh networks on a condensed dataset and tests them on the test split of its source.

    Args:
        dataset: a dataset, or what `load_dataset` takes.
        source: where the real data is now; None looks where the run found it.
        recipe: dc, dc-augmented or dsa; None takes the dataset's own.
        learners: how many networks; None takes as many as the run did.
        tracking_uri: where NAME is looked up.

    Returns:
        The evaluation, and the accuracy that the dataset states.

    Raises:
        ConfigError: an unknown recipe.
        DatasetError: no condensed dataset there, or it does not say how it was made.
        SourceError: its test data is not where it was.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}", "one of: " + ", ".join(RECIPES))
    keep_freed_memory()
    loaded = dataset if isinstance(dataset, CondensedDataset) else load_dataset(dataset, tracking_uri=tracking_uri)
    return evaluate_dataset(loaded, source=source, recipe=recipe, learners=learners)


def measure(
    what: str | Path,
    *,
    flow: str = "auto",
    data: DataConfig | None = None,
    split: str = "train",
    limit: int = 500,
    draws: int = 2,
    seed: int = 0,
    tracking_uri: str = STORE,
) -> Measured:
    """Measures bits per dim, bits and PNG bytes of a condensed dataset or of real images.

    Args:
        what: a source ("digits", "parquet:FILE" ...), a file or folder, or NAME[@alias|/version] of a registered
            dataset.
        flow: a shipped name, a file, models:/flow-NAME@best, or "auto": the shipped flow of the images' shape.
        data: how the images are read; None brings them to the flow's size.
        split: of a source: train, validation or test.
        limit: images of a source at most.
        draws: dequantisation draws per image; a Monte-Carlo error needs two.
        seed: of the drawn images and the noise.
        tracking_uri: where NAME is looked up.

    Raises:
        DatasetError, SourceError: what is named cannot be read.
        FlowError: no flow, or none of that shape.
        ConfigError: an unknown split.
    """
    with scratch_folder() as folder:
        flow = flow_file(flow, tracking_uri, folder)
        place = str(what)
        if not source_named(place):
            try:
                place = str(dataset_file(place, tracking_uri, folder))
            except CondenseError as error:
                raise DatasetError(f"{place!r} is no source, and {error.problem}", f"sources: {FORMS}") from None
        measured = measure_named(place, flow=flow, data=data, split=split, limit=limit, draws=draws, seed=seed)
    return replace(measured, what=str(what))


def load_dataset(where: str | Path, *, tracking_uri: str = STORE) -> CondensedDataset:
    """Reads a condensed dataset.

    Args:
        where: a Parquet file or its folder, or NAME[@alias|/version] of a registered dataset.
        tracking_uri: where NAME is looked up.

    Raises:
        DatasetError: no condensed dataset there, or it is damaged.
        TrackingError: the store cannot be reached or refuses.
    """
    with scratch_folder() as folder:
        return read_dataset(dataset_file(str(where), tracking_uri, folder))


def fit_flow(
    config: FlowFitConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    anew: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> FlowFit:
    """Trains a flow on a dataset, stores it, and registers it as flow-NAME in MLflow.

    Args:
        config: the recipe: a FlowFitConfig, a dictionary, or the path of a YAML file.
        overrides: further settings as "key=value".
        resume: go on with the interrupted fit of this recipe.
        anew: train even if an earlier fit of this recipe made the flow of the same data.
        progress: called with where the fit stands.

    Raises:
        CondenseError: with what is wrong and what to do.
    """
    resolved, tell = resolve_config(FlowFitConfig, config, overrides), progress or _ignore
    if needs_no_cluster(resolved):
        result = fit_here(resolved, resume=resume, anew=anew, progress=tell)
        return FlowFit(result, repeated=result.repeated)
    from cluster import flow_fit

    finished = flow_fit.fit(resolved, tell, resume=resume, anew=anew)
    version, repeated = finished.version, finished.result.repeated
    if version is None:
        return FlowFit(finished.result, repeated=repeated)
    best = f"{version.name}@best" if "best" in version.aliases else version.reference
    return FlowFit(finished.result, f"{REGISTERED}{best}", version.reference, version.run_id, repeated)


def resolve_config(model: type[S], config: S | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> S:
    """Returns the settings of a config in any of its forms, with overrides applied; raises ConfigError."""
    if isinstance(config, str | Path):
        return resolve(model, Path(config), overrides)
    if not overrides and isinstance(config, model):
        return config
    # What the caller has set is kept apart from defaults: a recipe fills in what nobody has set.
    values = config.model_dump(exclude_unset=True) if isinstance(config, Settings) else copy.deepcopy(dict(config))
    override_(values, overrides)
    return validate(model, values, where="the config")


def _run_here(config: RunConfig, progress: Callable[[Progress], None], anew: bool) -> RunResult:
    check_folder_writable(config.output, "set output=FOLDER")
    source, flow = open_checked(config)
    config = pin(config, flow)
    folder, name = folder_of(config, source.name), config.dataset_name(source.name)
    if not anew and (made := made_before(config, source)) is not None:
        return RunResult(made, completed(folder, made, name=name), repeated=True)
    dataset = unless_made_meanwhile(config, source, lambda: condense_here(config, NullTracker(), progress))
    write_folder(folder, dataset, name=name)
    forget_checkpoints(config)
    return RunResult(dataset, folder)


def _ignore(at: Progress) -> None:
    """Shows nothing."""
