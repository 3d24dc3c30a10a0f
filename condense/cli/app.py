"""Assembles the `condense` command. Every command calls a public function; none holds logic of its own."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from condense.cli import condensing, datasets, flows, measuring
from condense.errors import CondenseError

app = typer.Typer(
    name="condense",
    help="Turn an image dataset into a tiny synthetic one that trains a network nearly as well and costs few bits.",
    epilog="Start with: condense run examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    """Options of every command."""


app.command()(condensing.run)
app.command()(condensing.estimate)
app.command()(condensing.tune)
app.command()(condensing.evaluate)
app.command()(measuring.bits)
app.command()(datasets.ui)
app.add_typer(datasets.app, name="datasets")
app.add_typer(flows.app, name="flow")


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
