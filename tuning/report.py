"""Writes the files of a search: the front as a picture and as a page to point at, and tables.

The tables have all trials, and the front, as Parquet.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from condense.files import write_whole
from condense.reports.card import PREVIEW, spread
from tuning.importance import Importance
from tuning.journal import Trial
from tuning.space import SearchConfig

FRONT_PNG, FRONT_HTML = "front.png", "front.html"
FRONT_TABLE, TRIALS_TABLE, IMPORTANCE = "front.parquet", "trials.parquet", "importance.json"


def write(
    folder: Path,
    search: SearchConfig,
    trials: Sequence[Trial],
    members: Sequence[Trial],
    best: Trial | None,
    importance: Importance,
) -> None:
    """Writes every file of a search into a folder; raises OutputError."""
    write_whole(folder / FRONT_PNG, front_figure(search, trials, members, best))
    write_whole(folder / FRONT_HTML, front_page(search, trials, members, best).encode())
    write_whole(folder / TRIALS_TABLE, _parquet(trials_table(search, trials, members)))
    write_whole(folder / FRONT_TABLE, _parquet(trials_table(search, members, members)))
    found = {"method": importance.method, "trials": importance.trials, **importance.values}
    write_whole(folder / IMPORTANCE, json.dumps(found, indent=2).encode())


def trials_table(search: SearchConfig, trials: Sequence[Trial], members: Sequence[Trial]) -> pa.Table:
    """Returns one row a trial: number, status, both objectives, test accuracy where it was tested, place, chosen
    values.

    A trial that did not finish has its last point's numbers in `last_accuracy` and `last_bits`, as all have.
    """
    numbers = {member.number for member in members}
    rows = []
    for trial in trials:
        last = trial.points[max(trial.points)] if trial.points else None
        rows.append(
            {
                "trial": trial.number,
                "status": trial.status,
                "pareto": trial.number in numbers,
                "validation_accuracy": trial.result.get("accuracy"),
                "bits": trial.result.get("bits"),
                "bits_per_dim": trial.result.get("bits_per_dim"),
                "test_accuracy": trial.result.get("test_accuracy"),
                "version": None if "version" not in trial.result else f"{search.name}/{trial.result['version']}",
                "mlflow_run": trial.result.get("run_id"),
                "seconds": trial.result.get("seconds"),
                "started_from": None if trial.start is None else trial.start.trial,
                "last_step": max(trial.points, default=None),
                "last_accuracy": None if last is None else last.accuracy,
                "last_bits": None if last is None else last.bits,
                "reason": trial.reason,
                **trial.params,
            }
        )
    floats = ("validation_accuracy", "bits", "bits_per_dim", "test_accuracy", "seconds", "last_accuracy", "last_bits")
    fixed = {**dict.fromkeys(floats, pa.float64()), "version": pa.string(), "mlflow_run": pa.string()}
    fixed |= {"started_from": pa.int64(), "last_step": pa.int64(), "reason": pa.string()}
    columns = {key: pa.array([row[key] for row in rows], fixed.get(key)) for key in rows[0]}
    return pa.table(columns)


def front_figure(search: SearchConfig, trials: Sequence[Trial], members: Sequence[Trial], best: Trial | None) -> bytes:
    """Returns a PNG: every finished trial, the front as steps, `best`, and the mode's number."""
    from matplotlib.figure import Figure  # without pyplot there is no global state and no window

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    finished = [trial for trial in trials if trial.status == "finished"]
    others = [trial for trial in finished if trial not in members]
    axes.scatter(*_coordinates(others), s=18, color="#bbbbbb", label="other trials")
    axes.plot(*_coordinates(members), color="#4477aa", marker="o", drawstyle="steps-post", label="front")
    if best is not None:
        axes.scatter(*_coordinates([best]), s=140, marker="*", color="#cc6677", zorder=3, label="best")
    if search.kilobits is not None:
        axes.axvline(search.kilobits, color="#999999", linestyle="--", label="budget")
    if search.accuracy is not None:
        axes.axhline(search.accuracy, color="#999999", linestyle="--", label="target")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("kilobits of the whole set")
    axes.set_ylabel("validation accuracy (%)")
    axes.legend(loc="best")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def front_page(search: SearchConfig, trials: Sequence[Trial], members: Sequence[Trial], best: Trial | None) -> str:
    """Returns one HTML file that needs no network: points to hover over and click, and the pictures of the front's
    sets.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    numbers = {member.number for member in members}
    points = [
        {
            "trial": trial.number,
            "accuracy": trial.point.accuracy,
            "kilobits": trial.point.bits / 1000,
            "pareto": trial.number in numbers,
            "best": best is not None and trial.number == best.number,
            "facts": _facts(search, trial),
            "picture": _picture(trial) if trial.number in numbers else None,
        }
        for trial in finished
    ]
    data = json.dumps({"points": points, "kilobits": search.kilobits, "accuracy": search.accuracy})
    page = (Path(__file__).parent / "front.html").read_text(encoding="utf-8")
    return page.replace("{{title}}", html.escape(search.name)).replace("{{data}}", data.replace("</", "<\\/"))


def _facts(search: SearchConfig, trial: Trial) -> dict[str, str]:
    facts = {"validation accuracy": f"{trial.point.accuracy:.2f} %", "bits of the set": f"{trial.point.bits:,.0f}"}
    if "test_accuracy" in trial.result:
        facts["test accuracy"] = f"{spread(trial.result['test_accuracy'], trial.result['test_std'], places=2)} %"
    if "version" in trial.result:
        facts["version"] = f"{search.name}/{trial.result['version']}"
    return facts | {
        key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in trial.params.items()
    }


def _picture(trial: Trial) -> str | None:
    path = Path(trial.result.get("folder", "")) / PREVIEW
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _coordinates(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    return [trial.point.bits / 1000 for trial in trials], [trial.point.accuracy for trial in trials]


def _parquet(table: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()
