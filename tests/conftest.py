"""The command line as a test calls it: in this process, because importing torch takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from condense import cli

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"

# Small enough for seconds on one core; no shipped flow measures 16x16 images, so no bits.
TINY = (
    "workers=0",
    "tracking_uri=none",
    "bits_weight=0",
    "data.image_size=16",
    "network.width=8",
    "outer_steps=2",
    "evaluation.learners=1",
    "evaluation.controls=false",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def dataset(self) -> Path:
        """The file that `condense run` says it wrote."""
        return Path(next(line for line in self.out.splitlines() if line.startswith("dataset ")).split(maxsplit=1)[1])


Command = Callable[..., Outcome]


@pytest.fixture
def condense(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Calls `condense ARGUMENTS` in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["condense", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        written = capsys.readouterr()
        return Outcome(code, written.out, written.err)

    return call
