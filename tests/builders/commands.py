"""What a command leaves behind, and how it refuses."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Outcome


def refused(outcome: Outcome, *named: str) -> None:
    """One message on standard error: a problem, at most one remedy, everything in `named`; exit code 2."""
    assert outcome.code == 2, outcome.out + outcome.err
    problem, *remedy = outcome.err.splitlines()
    assert problem.startswith("error ")
    assert [line[:5] for line in remedy] in ([], ["  -> "])
    assert " at 0x" not in outcome.err
    for part in named:
        assert part in outcome.err


def left(folder: Path) -> list[Path]:
    """Files that a refused command must not have left: in its output, and half-written ones anywhere."""
    written = [path for path in (folder / "condensed").rglob("*") if path.is_file()]
    return written + [path for path in folder.rglob(".*") if path.is_file()]
