"""Results as JSON lines: what a benchmark appends as it goes, and reads again for its table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def finished(results: Path) -> list[dict[str, Any]]:
    """The rows so far; none where there is no file yet."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def append(results: Path, row: dict[str, Any]) -> None:
    """Adds a line."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")


def tell(results: Path | None, row: dict[str, Any]) -> None:
    """Prints a row, and adds it where a file was asked for."""
    print(json.dumps(row), flush=True)
    if results:
        append(results, row)


def repeated(about: str) -> argparse.Namespace:
    """The command line of a benchmark that measures several ways in turn, a number of times.

    Args:
        about: its module's docstring, whose first line `--help` shows.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    return parser.parse_args()
