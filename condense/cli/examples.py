"""The command over the examples that ship with Condense: init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condense.errors import ConfigError, OutputError
from condense.example_files import about, example_file, example_names

COMMANDS = {"flows": "flow fit", "search": "tune"}  # by the first part of a name; of all others: run


def init(
    name: Annotated[
        str | None, typer.Argument(help="An example; without it they are listed.", show_default=False)
    ] = None,
) -> None:
    """Write an example's YAML file to this folder, as the start of a config of your own; or list the examples.

    `condense run NAME` takes an example as it is.
    """
    from condense.files import write_whole
    from condense.reports import console

    if name is None:
        rows = [(known, about(file)) for known in example_names() if (file := example_file(known)) is not None]
        console.show_rows("condense init NAME", ("example", "what it is"), rows)
        return
    file = example_file(name)
    if file is None:
        raise ConfigError(f"there is no example {name!r}", "one of: " + ", ".join(example_names()))
    own, content = Path(file.name), file.read_bytes()
    if own.exists() and own.read_bytes() != content:
        raise OutputError(f"{own} exists and is not the example", "move it away, or work in another folder")
    write_whole(own, content)
    first = name.removeprefix("examples/").removesuffix(".yaml").partition("/")[0]
    console.out.print(f"wrote {own}; next: condense {COMMANDS.get(first, 'run')} {own}")
