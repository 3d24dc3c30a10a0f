"""The commands over flows, the yardsticks that bits are measured with: list, show, fit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from shlex import join, quote
from typing import Annotated

import typer

from condense.cli.options import ANEW, CONFIG, STORE, Overrides, Tracking, progress_bar, show_repeat
from condense.example_files import located

app = typer.Typer(help="Train, list and show flows, the yardsticks that bits are measured with.", no_args_is_help=True)


@app.command("list")
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


@app.command("show")
def show_flow(
    flow: Annotated[str, typer.Argument(help="A shipped flow, a file, or models:/flow-NAME@best.")],
    tracking_uri: Tracking = STORE,
) -> None:
    """What a flow's card says: recipe, cost, sources, held-out bits, the training curve."""
    from condense.files import scratch_folder
    from condense.flow.store import load_card
    from condense.lookup import flow_file
    from condense.reports import console

    with scratch_folder() as folder:
        console.show_config(flow, load_card(flow_file(flow, tracking_uri, folder)))


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help=CONFIG.format("flows/fashion-mnist"))],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the interrupted fit of this recipe.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help=ANEW)] = False,
) -> None:
    """Train a flow on a dataset of yours, with exact resume, and register it as flow-NAME in MLflow."""
    from condense import api
    from condense.flow.recipe import FlowFitConfig
    from condense.lookup import needs_no_cluster
    from condense.reports import console

    resolved = api.resolve_config(FlowFitConfig, config, overrides or [])
    needs_no_cluster(resolved)  # says what is missing before anything is shown
    console.show_config(f"condense flow fit {quote(str(located(config)))}", resolved.as_dict())
    with progress_bar() as progress:
        fitted = api.fit_flow(resolved, resume=resume, anew=anew, progress=progress)
    result = fitted.result
    if fitted.repeated:
        show_repeat(fitted.version or str(result.path))
    console.show_flows({result.card["name"]: {**result.card, "digest": result.digest}})
    console.out.print(f"flow     {result.path}")
    used = [f"flow={result.path}"]
    if fitted.reference is not None:
        console.out.print(f"version  {fitted.version} (MLflow run {fitted.run_id})")
        used = [f"flow={fitted.reference}"]
        used += [] if resolved.tracking_uri == STORE else [f"tracking_uri={resolved.tracking_uri}"]
    console.out.print(f"use it   condense run CONFIG {join(used)}")
