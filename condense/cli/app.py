"""The front door. Each command imports the layer that it starts; no command holds logic of its own."""

from __future__ import annotations

import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condense.errors import CondenseError, ConfigError, DatasetError

if TYPE_CHECKING:
    from condense.condensation.config import RunConfig
    from condense.flow.recipe import FlowFitConfig

app = typer.Typer(
    name="condense",
    help="Turn an image dataset into a tiny synthetic one that trains a network nearly as well and costs few bits.",
    epilog="Start with: condense run examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
datasets = typer.Typer(help="List, show, download and register condensed datasets.", no_args_is_help=True)
flows = typer.Typer(
    help="Train, list and show flows, the yardsticks that bits are measured with.", no_args_is_help=True
)
app.add_typer(datasets, name="datasets")
app.add_typer(flows, name="flow")

STORE = "sqlite:///mlflow.db"
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value; nested keys with dots.", metavar="[KEY=VALUE]...")
]
Tracking = Annotated[str, typer.Option("--tracking-uri", help="MLflow server or SQLite file.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    """Options of every command."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/quickstart.yaml.")],
    overrides: Overrides = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time to use, as in 10m: as many outer steps are done as fit in."),
    ] = None,
) -> None:
    """Condense a dataset: train, evaluate, write the Parquet, register a version in MLflow.

    Interrupted? Run the same command again: it goes on from the last checkpoint. Where a core is free,
    evaluation.beside=true evaluates in a process of its own while training goes on.
    """
    from condense.condensation.config import RunConfig
    from condense.reports import console
    from condense.settings import resolve
    from condense.workers.context import Progress
    from condense.workers.time_budget import parse_duration

    within = [] if budget is None else [f"time_budget_s={parse_duration(budget)}"]
    resolved = resolve(RunConfig, config, [*(overrides or []), *within])
    alone = _alone(resolved)
    console.show_config(f"condense run {config}", resolved.as_dict())
    with console.progress_shown() as show:

        def progress(at: Progress) -> None:
            show(at.stage, at.done, at.total, at.values)

        if alone:
            from condense.condensation import in_process as local

            dataset, path = local.run(resolved, progress)
            finished = None
        else:
            from cluster import run as tracked

            finished = tracked.run(resolved, progress)
            dataset, path = finished.dataset, finished.folder / "data.parquet"
    console.show_result(dataset.provenance, len(dataset.class_names), len(dataset.images))
    console.out.print(f"dataset  {path}")
    if finished is not None and finished.version is not None:
        from cluster import registry

        version = finished.version
        uri = "" if resolved.tracking_uri == STORE else f" --tracking-uri {resolved.tracking_uri}"
        console.out.print(f"version  {version.name}/{version.version} (MLflow run {finished.run_id})")
        console.out.print(f"download condense datasets download {version.name}/{version.version} -o DIR{uri}")
        console.out.print(
            f"compare  condense ui{uri}, then {registry.compare_url(resolved.tracking_uri, [version.run_id])}"
        )
    console.out.print(f"again    condense evaluate {path}")


@app.command()
def estimate(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/quickstart.yaml.")],
    overrides: Overrides = None,
) -> None:
    """Say what a run will take on machines like this one: time, memory, checkpoints, the best number of workers.

    Measures real steps of the config for some seconds to a minute; starts, writes and registers nothing.
    """
    from condense.condensation.config import RunConfig
    from condense.condensation.estimate import estimate as estimated
    from condense.reports import console
    from condense.settings import resolve

    console.show_estimate(str(config), estimated(resolve(RunConfig, config, overrides or [])))


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/search.yaml.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the search of this name.")] = False,
) -> None:
    """Search for the trade-off between accuracy and bits; ends in a front of registered datasets."""
    from condense.reports import console
    from tuning import search, terminal
    from tuning.space import resolve_search

    resolved = resolve_search(config, overrides or [])
    console.show_config(f"condense tune {config}", resolved.as_dict())
    with terminal.show_progress(resolved) as changed:
        outcome = search.run(resolved, resume=resume, changed=changed)
    terminal.show_outcome(resolved, outcome)


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Argument(help="A condensed Parquet file or folder, or NAME[@alias|/version].")],
    source: Annotated[str | None, typer.Option(help="Where the real data is now.")] = None,
    recipe: Annotated[str | None, typer.Option(help="dc, dc-augmented or dsa; the file's own by default.")] = None,
    learners: Annotated[int | None, typer.Option(min=1, help="Fresh networks to train.")] = None,
    tracking_uri: Tracking = STORE,
) -> None:
    """Train fresh networks on a condensed dataset and compare with the accuracy that its card states, if any."""
    from condense.condensation.reproduce import evaluate_dataset
    from condense.learners.recipes import RECIPES
    from condense.reports import console
    from condense.workers.memory import keep_freed_memory

    if recipe is not None and recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}", "one of: " + ", ".join(RECIPES))
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate_dataset(
            _condensed(dataset, tracking_uri, Path(folder)), source=source, recipe=recipe, learners=learners
        )
    measured = found.evaluation
    stated = "none stated" if found.stated is None else "stated {:.2f} ± {:.2f} %".format(*found.stated)
    console.out.print(
        f"test accuracy {measured.mean:.2f} ± {measured.std:.2f} % ({measured.recipe.name}, "
        f"{len(measured.accuracies)} learners); {stated}"
    )
    if found.stated is not None and found.as_stated:
        same = abs(measured.mean - found.stated[0]) < 1e-6
        console.out.print("reproduced exactly" if same else "not the same numbers: other hardware or versions?")


@app.command()
def bits(
    what: Annotated[
        str, typer.Argument(help="A source (digits, parquet:FILE ...), a file or folder, or NAME[@alias|/version].")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="How the images are read, as in data.image_size=28.", metavar="[data.KEY=VALUE]..."),
    ] = None,
    flow: Annotated[str, typer.Option(help="A shipped flow, a file, models:/flow-NAME@best, or auto.")] = "auto",
    split: Annotated[str, typer.Option(help="Of a source: train, validation or test.")] = "train",
    limit: Annotated[int, typer.Option(min=1, help="Images measured of a source.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Dequantisation draws per image.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for pictures and a row per image.")] = None,
    tracking_uri: Tracking = STORE,
) -> None:
    """Bits per dimension, bits and PNG bytes of a condensed dataset or of real images, by class and image.

    With -o: images.parquet (one row per image), sorted.png, histogram.png, map.png (where in an image its bits are).
    """
    from dataclasses import replace

    from condense.data.sources import FORMS
    from condense.reports import console
    from condense.reports.measurement import BitsConfig, measure_named, source_named, write_measured
    from condense.settings import resolve

    data = resolve(BitsConfig, None, overrides or []).data
    with tempfile.TemporaryDirectory() as folder:
        flow = _flow_path(flow, tracking_uri, Path(folder))
        try:
            place = what if source_named(what) else str(_condensed_path(what, tracking_uri, Path(folder)))
        except CondenseError as error:
            raise DatasetError(f"{what!r} is no source, and {error.problem}", f"sources: {FORMS}") from None
        measured = measure_named(place, flow=flow, data=data, split=split, limit=limit, draws=draws, seed=seed)
    measured = replace(measured, what=what)
    console.show_bits(measured.title, measured.report, measured.data.labels, measured.data.class_names)
    if out is None:
        console.out.print("pictures, a map of the bits and a row per image: add -o DIR")
        return
    for path in write_measured(out, measured):
        console.out.print(f"wrote {path}")


@app.command()
def ui(
    tracking_uri: Tracking = STORE,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 5000,
    host: Annotated[str, typer.Option(help="Loopback unless you say otherwise.")] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
) -> None:
    """Compare condensed datasets in MLflow's UI."""
    from cluster.ui import serve
    from condense.reports import console

    serve(tracking_uri, host=host, port=port, open_browser=open_browser, announce=console.out.print)


@datasets.command("list")
def list_(tracking_uri: Tracking = STORE) -> None:
    """Every version of every condensed dataset."""
    from cluster.registry import list_datasets
    from condense.reports import console

    rows = [
        (
            version.reference,
            ", ".join(version.aliases),
            *(
                version.tags.get(key, "-")
                for key in ("images_per_class", "bits_weight", "bits_per_dim", "validation_accuracy", "test_accuracy")
            ),
        )
        for version in list_datasets(tracking_uri)
    ]
    if not rows:
        console.out.print("no condensed datasets yet; make one with: condense run examples/quickstart.yaml")
        return
    columns = ("dataset", "alias", "ipc", "bits_weight", "bits/dim", "validation %", "test %")
    console.show_rows(tracking_uri, columns, rows)


@datasets.command()
def show(
    reference: Annotated[str, typer.Argument(help="NAME[@alias|/version]")], tracking_uri: Tracking = STORE
) -> None:
    """One version: its tags and aliases."""
    from cluster import registry
    from condense.reports import console

    version = registry.show(tracking_uri, reference)
    rows = [("aliases", ", ".join(version.aliases)), ("run", version.run_id), *sorted(version.tags.items())]
    console.show_rows(version.reference, ("key", "value"), rows)


@datasets.command()
def download(
    reference: Annotated[str, typer.Argument(help="NAME[@alias|/version]")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path(),
    force: Annotated[bool, typer.Option(help="Replace files that differ.")] = False,
    tracking_uri: Tracking = STORE,
) -> None:
    """Bring a version's Parquet, card and pictures to a folder, byte for byte."""
    from cluster import registry
    from condense.reports import console

    console.out.print(str(registry.download(tracking_uri, reference, out, force=force)))


@datasets.command()
def register(
    folder: Annotated[Path, typer.Argument(help="What a run wrote, with its data.parquet.")],
    tracking_uri: Tracking = STORE,
) -> None:
    """Register what a run has written while its server was away, and send what it logged."""
    from cluster import run as tracked
    from condense.reports import console

    version = tracked.register_folder(tracking_uri, folder)
    console.out.print(f"version  {version.reference} (MLflow run {version.run_id})")


@flows.command("list")
def list_flows(tracking_uri: Tracking = STORE) -> None:
    """The flows that ship with Condense, and those that `condense flow fit` registered."""
    from condense.flow.store import load_card, shipped_flows
    from condense.reports import console

    console.show_flows({name: load_card(name) for name in shipped_flows()})
    if find_spec("mlflow"):
        from cluster import flows

        rows = flows.listed(tracking_uri)
        if rows:
            console.show_rows(tracking_uri, flows.COLUMNS, rows)


@flows.command("show")
def show_flow(
    flow: Annotated[str, typer.Argument(help="A shipped flow, a file, or models:/flow-NAME@best.")],
    tracking_uri: Tracking = STORE,
) -> None:
    """What a flow's card says: recipe, cost, sources, held-out bits, the training curve."""
    from condense.flow.store import load_card
    from condense.reports import console

    with tempfile.TemporaryDirectory() as folder:
        console.show_config(flow, load_card(_flow_path(flow, tracking_uri, Path(folder))))


@flows.command()
def fit(
    config: Annotated[Path, typer.Argument(help="YAML recipe, such as examples/flow-fashion-mnist.yaml.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the interrupted fit of this recipe.")] = False,
) -> None:
    """Train a flow on a dataset of yours, with exact resume, and register it as flow-NAME in MLflow."""
    from condense.flow.recipe import FlowFitConfig
    from condense.reports import console
    from condense.settings import resolve
    from condense.workers.context import Progress

    resolved = resolve(FlowFitConfig, config, overrides or [])
    alone = _alone(resolved)
    console.show_config(f"condense flow fit {config}", resolved.as_dict())
    with console.progress_shown() as shown:

        def progress(at: Progress) -> None:
            shown(at.stage, at.done, at.total, at.values)

        if alone:
            from condense.flow.fit import fit as train

            result, version = train(resolved, resume=resume, progress=progress), None
        else:
            from cluster import flow_fit

            finished = flow_fit.fit(resolved, progress, resume=resume)
            result, version = finished.result, finished.version
    console.show_flows({result.card["name"]: {**result.card, "digest": result.digest}})
    console.out.print(f"flow     {result.path}")
    flow = str(result.path)
    if version is not None:
        console.out.print(f"version  {version.reference} (MLflow run {version.run_id})")
        flow = f"models:/{version.name}@best" if "best" in version.aliases else f"models:/{version.reference}"
        flow += "" if resolved.tracking_uri == STORE else f" tracking_uri={resolved.tracking_uri}"
    console.out.print(f"use it   condense run CONFIG flow={flow}")


def _alone(settings: RunConfig | FlowFitConfig) -> bool:
    """Whether these settings need neither Ray nor MLflow."""
    alone = settings.workers == 0 and (settings.tracking_uri == "none" or not find_spec("mlflow"))
    if alone and "tracking_uri" in settings.model_fields_set and settings.tracking_uri != "none":
        raise ConfigError(
            f"tracking_uri is {settings.as_dict()['tracking_uri']!r} and mlflow is not installed",
            "pip install 'condense-service[cluster]', or set tracking_uri=none",
        )
    return alone


def _flow_path(flow: str, tracking_uri: str, folder: Path) -> str:
    """The flow, or the file of one in the registry, which is downloaded to `folder`."""
    if not flow.startswith("models:/") or not find_spec("mlflow"):
        return flow
    from cluster import flows

    return str(flows.bring(tracking_uri, flow, folder)[0])


def _condensed(reference: str, tracking_uri: str, folder: Path):  # type: ignore[no-untyped-def]
    """The condensed dataset in a file, a folder, or the registry."""
    from condense.synthetic.dataset import read_dataset

    return read_dataset(_condensed_path(reference, tracking_uri, folder))


def _condensed_path(reference: str, tracking_uri: str, folder: Path) -> Path:
    """Its file; what is in the registry is downloaded to `folder`."""
    path = Path(reference)
    if not path.exists() and path.suffix != ".parquet" and find_spec("mlflow"):
        from cluster import registry

        path = registry.download(tracking_uri, reference, folder)
    return path / "data.parquet" if path.is_dir() else path


def main() -> None:
    """Runs the command line; an expected error is one message and exit code 2, SIGTERM ends as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app(prog_name="condense")
    except CondenseError as error:
        if "--debug" in sys.argv:
            raise
        from condense.reports import console

        console.show_error(error)
        sys.exit(2)
