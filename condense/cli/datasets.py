"""The commands over condensed datasets in MLflow: list, show, download, register, and the UI that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condense.cli.options import REFERENCE, STORE, Tracking

app = typer.Typer(help="List, show, download and register condensed datasets.", no_args_is_help=True)


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


@app.command("list")
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
        console.out.print("no condensed datasets yet; make one with: condense run quickstart")
        return
    columns = ("dataset", "alias", "ipc", "bits_weight", "bits/dim", "validation %", "test %")
    console.show_rows(tracking_uri, columns, rows)


@app.command()
def show(reference: Annotated[str, typer.Argument(help=REFERENCE)], tracking_uri: Tracking = STORE) -> None:
    """One version: its tags and aliases."""
    from cluster import registry
    from condense.reports import console

    version = registry.show(tracking_uri, reference)
    rows = [("aliases", ", ".join(version.aliases)), ("run", version.run_id), *sorted(version.tags.items())]
    console.show_rows(version.reference, ("key", "value"), rows)


@app.command()
def download(
    reference: Annotated[str, typer.Argument(help=REFERENCE)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write to; NAME-NUMBER of the version by default.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace files that differ.")] = False,
    tracking_uri: Tracking = STORE,
) -> None:
    """Bring a version's Parquet, card and pictures to a folder, byte for byte."""
    from cluster import registry
    from condense.reports import console

    version = registry.show(tracking_uri, reference)
    own = out or Path(f"{version.name}-{version.version}")
    console.out.print(str(registry.download(tracking_uri, version.reference, own, force=force)))


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="What a run wrote, with its data.parquet.")],
    tracking_uri: Tracking = STORE,
) -> None:
    """Register what a run has written while its server was away, and send what it logged."""
    from cluster import run as tracked
    from condense.reports import console

    version = tracked.register_folder(tracking_uri, folder)
    console.out.print(f"version  {version.reference} (MLflow run {version.run_id})")
