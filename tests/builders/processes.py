"""Processes that a test looks at: those that it started, and theirs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def descendants(pid: int | None = None) -> list[int]:
    """The processes that `pid`, or this one, has started, and theirs; children come before their own."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, rest = status.parent.name, status.read_text().rpartition(")")[2]
            parents[int(number)] = int(rest.split()[1])
    found = [pid or os.getpid()]
    for ancestor in found:
        found.extend(child for child, parent in parents.items() if parent == ancestor)
    return found[1:]
