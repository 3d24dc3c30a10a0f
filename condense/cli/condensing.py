"""The commands of the main job: run, estimate, tune, evaluate."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from condense.cli.options import (
    ANEW,
    CONFIG,
    REFERENCE,
    STORE,
    Overrides,
    Tracking,
    progress_bar,
    show_repeat,
    uri_option,
)
from condense.example_files import located


def run(
    config: Annotated[Path, typer.Argument(help=CONFIG.format("quickstart"))],
    overrides: Overrides = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time to use, as in 10m: as many outer steps are done as fit in."),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help=ANEW)] = False,
) -> None:
    """Condense a dataset: train, evaluate, write the Parquet, register a version in MLflow.

    Interrupted? Run the same command again: it goes on from the last checkpoint. Finished? Then it says at once where
    the dataset is. Where a core is free,
    evaluation.beside=true evaluates in a process of its own while training goes on.
    """
    from condense import api
    from condense.condensation.config import RunConfig
    from condense.lookup import needs_no_cluster
    from condense.reports import console
    from condense.workers.time_budget import parse_duration

    within = [] if budget is None else [f"time_budget_s={parse_duration(budget)}"]
    resolved = api.resolve_config(RunConfig, config, [*(overrides or []), *within])
    needs_no_cluster(resolved)  # says what is missing before anything is shown
    console.show_config(f"condense run {quote(str(located(config)))}", resolved.as_dict())
    with progress_bar() as progress:
        result = api.run(resolved, anew=anew, progress=progress)
    dataset = result.dataset
    if result.repeated:
        show_repeat(result.version or str(result.path))
    console.show_result(dataset.provenance, len(dataset.class_names), len(dataset.images))
    if dataset.provenance["ended_by"] == "time":
        steps = dataset.provenance["outer_steps"]
        console.out.print(f"stopped at step {steps}, where the time was used up; another --budget is another run")
    console.out.print(f"dataset  {result.path}")
    if result.version is not None and result.run_id is not None:
        from cluster import registry

        uri = uri_option(resolved.tracking_uri)
        console.out.print(f"version  {result.version} (MLflow run {result.run_id})")
        console.out.print(f"download condense datasets download {result.version}{uri}")
        console.out.print(
            f"compare  condense ui{uri}, then {registry.compare_url(resolved.tracking_uri, [result.run_id])}"
        )
    console.out.print(f"again    condense evaluate {quote(str(result.path))}")


def estimate(
    config: Annotated[Path, typer.Argument(help=CONFIG.format("quickstart"))],
    overrides: Overrides = None,
) -> None:
    """Say what a run will take on machines like this one: time, memory, checkpoints, the best number of workers.

    Measures real steps of the config for some seconds to a minute; starts, writes and registers nothing.
    """
    from condense.condensation.config import RunConfig
    from condense.condensation.estimate import estimate as estimated
    from condense.reports import console
    from condense.settings import resolve

    console.show_estimate(str(located(config)), estimated(resolve(RunConfig, config, overrides or [])))


def tune(
    config: Annotated[Path, typer.Argument(help=CONFIG.format("search"))],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the search of this name.")] = False,
) -> None:
    """Search for the trade-off between accuracy and bits; ends in a front of registered datasets."""
    from condense import api
    from condense.reports import console
    from tuning import journal, terminal
    from tuning.space import resolve_search

    resolved = resolve_search(config, overrides or [])
    console.show_config(f"condense tune {quote(str(located(config)))}", resolved.as_dict())
    over = journal.trials_over(resolved)
    if over is not None and over >= resolved.trials and not resume:
        console.out.print(
            f"already made: search {resolved.name}, {over} of {resolved.trials} trials over, nothing to do"
            " (--resume shows its front again)"
        )
        return
    if over is not None and resume:
        console.out.print(f"going on with {over} of {resolved.trials} trials over")
    with terminal.show_progress(resolved) as changed:
        outcome = api.tune(resolved, resume=resume, changed=changed)
    terminal.show_outcome(resolved, outcome)


def evaluate(
    dataset: Annotated[str, typer.Argument(help=f"A condensed Parquet file or folder, or {REFERENCE}.")],
    source: Annotated[str | None, typer.Option(help="Where the real data is now.")] = None,
    recipe: Annotated[str | None, typer.Option(help="dc, dc-augmented or dsa; the file's own by default.")] = None,
    learners: Annotated[int | None, typer.Option(min=1, help="Fresh networks to train.")] = None,
    tracking_uri: Tracking = STORE,
) -> None:
    """Train fresh networks on a condensed dataset and compare with the accuracy that its card states, if any."""
    from condense import api
    from condense.reports import console
    from condense.reports.card import spread

    found = api.evaluate(dataset, source=source, recipe=recipe, learners=learners, tracking_uri=tracking_uri)
    measured = found.evaluation
    stated = "none stated" if found.stated is None else f"stated {spread(*found.stated, places=2)} %"
    count = len(measured.accuracies)
    console.out.print(
        f"test accuracy {spread(measured.mean, measured.std, places=2)} % ({measured.recipe.name}, "
        f"{count} learner{'' if count == 1 else 's'}); {stated}"
    )
    if found.stated is not None and found.as_stated:
        same = abs(measured.mean - found.stated[0]) < 1e-6
        console.out.print("reproduced exactly" if same else "not the same numbers: other hardware or versions?")
