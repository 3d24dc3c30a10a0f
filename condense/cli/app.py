"""Assembles the `condense` command. Every command calls a public function; none holds logic of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from condense.cli import condensing, datasets, examples, flows, measuring
from condense.errors import CondenseError

DEBUG = "--debug"

app = typer.Typer(
    name="condense",
    help="Turn an image dataset into a tiny synthetic one that trains a network nearly as well and costs few bits.",
    epilog="Start with: condense run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error; anywhere on the line.")] = False,
) -> None:
    """Options of every command."""


app.command()(examples.init)
app.command()(condensing.run)
app.command()(condensing.estimate)
app.command()(condensing.tune)
app.command()(condensing.evaluate)
app.command()(measuring.bits)
app.command()(datasets.ui)
app.add_typer(datasets.app, name="datasets")
app.add_typer(flows.app, name="flow")


def main() -> None:
    """Runs the command line. An expected error is one message and exit code 2.

    An interruption is one sentence that says how it goes on, and exit code 130 (Ctrl-C) or 143 (SIGTERM).
    """
    words = [word for word in sys.argv[1:] if word != DEBUG]
    debug = len(words) < len(sys.argv) - 1
    with _signals_end_it() as received:
        try:
            app(words, prog_name="condense")
        except CondenseError as error:
            if debug:
                raise
            from condense.reports import console

            console.show_error(error)
            sys.exit(2)
        except SystemExit as end:
            if end.code == signal.SIGTERM:  # from Ray's own handler, which is in place while Ray starts
                received.append(signal.SIGTERM)
            if not received:
                raise
            sys.stdout.flush()
            print("\n".join(getattr(end, "__notes__", ["stopped"])), file=sys.stderr, flush=True)  # noqa: T201
            sys.exit(_exit_code(received[0]))  # Ray makes another code of it, 1


def _exit_code(number: int) -> int:
    return 128 + number


@contextmanager
def _signals_end_it() -> Iterator[list[int]]:
    """Has Ctrl-C and SIGTERM end the enclosed block by SystemExit, wherever it works; gives the signals that came."""
    received: list[int] = []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        sys.exit(_exit_code(number))

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
