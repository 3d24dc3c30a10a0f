"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from condense.workers.context import Progress

REFERENCE = r"NAME\[@alias|/version]"  # in help texts, which Rich takes for markup where the bracket is not escaped

CONFIG = "A YAML file, or the name of an example, such as {}; `condense init` lists them."

ANEW = "Compute it even if the same command has made it before."

STORE = "sqlite:///mlflow.db"  # as in condense.api, which is imported where it is used

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value; nested keys with dots.", metavar="[KEY=VALUE]...")
]
Tracking = Annotated[str, typer.Option("--tracking-uri", help="MLflow server or SQLite file.")]


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Gives a function that shows in the terminal where a job stands; shows the splits of the data that it opens."""
    from condense.reports import console

    with console.splits_shown(), console.progress_shown() as show:

        def tell(at: Progress) -> None:
            if at.message:
                console.out.print(at.message)
            show(at.stage, at.done, at.total, at.values)

        yield tell


def show_repeat(made: str) -> None:
    """Says that an earlier command has made the same: NAME/NUMBER of a version, or a file."""
    from condense.reports import console

    name, _, number = made.rpartition("/")
    what = f"version {number} of {name}" if number.isdecimal() else made
    console.out.print(f"already made: {what}, nothing to do (--anew computes it again)")


def uri_option(tracking_uri: str) -> str:
    """Returns the option that names a store in a printed command; empty for the default one."""
    return "" if tracking_uri == STORE else f" --tracking-uri {quote(tracking_uri)}"
