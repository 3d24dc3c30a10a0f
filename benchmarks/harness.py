"""What benchmarks share: their options, the rows that they write and read, and a quiet process to measure in."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.condensation.provenance import git_revision
from condense.synthetic.dataset import CondensedDataset
from condense.workers.checkpoints import LocalCheckpoints, NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.memory import keep_freed_memory
from condense.workers.tracking import NullTracker, Tracker

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_last = [time.perf_counter()]  # when the last row was added, or this process began


def options(
    about: str | None,
    *,
    rows: bool = True,
    out: str | None = None,
    data: bool = False,
    seeds: bool = False,
    settings: bool = False,
    repeats: int | None = None,
) -> argparse.ArgumentParser:
    """The options of a benchmark; the same word means the same in all of them.

    Args:
        about: its module's docstring.
        rows: whether it writes rows at all.
        out: name of its file of rows in results/; None writes rows only where --out is given.
        data: whether it reads a folder of Parquet files ({cifar10,fashion_mnist,mnist}_{train,test}.parquet).
        seeds: whether it is repeated for several seeds.
        settings: whether it takes settings of a run.
        repeats: how often it measures each way, unless told otherwise; None is a benchmark that does so once. It may
            also be tried with --tiny, and print the table of rows that were written before.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = None if out is None else RESULTS / out
    if rows:
        told = "none" if default is None else default.relative_to(ROOT)
        parser.add_argument("--out", type=Path, default=default, help=f"file that rows are added to (default: {told})")
    if data:
        parser.add_argument("--data", type=Path, required=True, help="folder of Parquet files")
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    if settings:
        parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the run")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="rounds, in each of which all ways take turns")
        parser.add_argument("--tiny", action="store_true", help="only try whether it works")
        parser.add_argument("--read", type=Path, metavar="FILE", help="print the table of rows written before")
    return parser


def quiet(threads: int = 1) -> None:
    """Makes this process one that measurements are taken in."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def finished(results: Path) -> list[dict[str, Any]]:
    """The rows so far; none where there is no file yet."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def append(results: Path, row: dict[str, Any]) -> None:
    """Adds a row, with where it comes from and the wall seconds since the row before it."""
    results.parent.mkdir(parents=True, exist_ok=True)
    now, before = time.perf_counter(), _last[0]
    _last[0] = now
    with results.open("a") as file:
        file.write(json.dumps(origin() | {"seconds": round(now - before, 2)} | row) + "\n")


def tell(results: Path | None, row: dict[str, Any]) -> None:
    """Prints a row, and adds it where there is a file."""
    print(json.dumps(row), flush=True)
    if results:
        append(results, row)


def run_missing(
    results: Path, keys: Iterable[dict[str, Any]], measure: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Adds the row of every key that has none yet, so that the command goes on where it was stopped.

    Args:
        results: the file of rows.
        keys: what tells one row from another.
        measure: what a row has besides its key.
    """
    for key in keys:
        if not any(key.items() <= row.items() for row in finished(results)):
            print(key, file=sys.stderr, flush=True)
            append(results, key | measure(key))


def child(module: str, *arguments: object) -> Any:
    """What a benchmark prints last, as JSON, when it runs in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def condense_alone(
    config: RunConfig,
    progress: Callable[[Progress], None] = lambda at: None,
    *,
    tracker: Tracker | None = None,
    checkpoints: LocalCheckpoints | None = None,
    device: str = "cpu",
) -> CondensedDataset:
    """Condenses in this process; keeps neither checkpoints nor metrics unless told to."""
    kept = checkpoints or NoCheckpoints()
    return condense(config, WorkerContext(Alone(), tracker or NullTracker(), kept, progress, torch.device(device)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def spread(values: Sequence[float], places: int = 1, *, sign: str = "-") -> str:
    """Mean and standard deviation; with sign="+" a positive mean has its sign too."""
    return f"{statistics.mean(values):{sign}.{places}f} ± {statistics.pstdev(values):.{places}f}"


@cache
def origin() -> dict[str, Any]:
    """Where rows come from."""
    return {
        "benchmark": Path(sys.argv[0]).stem.split()[-1],
        "command": " ".join(sys.argv[1:]),
        "machine": processor(),
        "torch": str(torch.__version__),
        "revision": git_revision(),
    }


def processor() -> str:
    """The kind of processor and the number of its cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
