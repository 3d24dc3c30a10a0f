"""The command line as a test calls it: in this process, because importing torch takes seconds."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from condense.cli import app as cli

# Tensors are tiny here: a second thread gives nothing, and on a busy machine each waits for the other (a run of TINY
# took 5 s with one thread and 146 s with two). It is read when torch loads, which importing cli does not do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests kill workers and nodes, so they start clusters of their own and never touch one that a person has named.
NAMED_CLUSTER = os.environ.pop("RAY_ADDRESS", None)

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


def pytest_report_header() -> str:
    unused = f"; RAY_ADDRESS={NAMED_CLUSTER} is not used" if NAMED_CLUSTER else ""
    return f"ray: clusters of the suite's own{unused}"


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


def condense_in(folder: Path, *arguments: object) -> Outcome:
    """Calls `condense ARGUMENTS` with `folder` as the working directory."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["condense", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def condense(tmp_path: Path) -> Command:
    """Calls `condense ARGUMENTS` in a working directory of the test's own."""
    return partial(condense_in, tmp_path)
