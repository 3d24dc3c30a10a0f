"""Shows a search in the terminal: a live table of its trials, and the front at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shlex import quote
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster import registry
from condense.condensation.config import RunConfig
from condense.reports import console
from condense.reports.card import spread
from condense.workers.interruption import RESUMING
from tuning.journal import Journal, Trial
from tuning.publish import Outcome
from tuning.score import front
from tuning.space import SearchConfig

ROWS = 14  # of the live table, besides the trials at work: the latest that are over


@contextmanager
def show_progress(search: SearchConfig) -> Iterator[Callable[[Journal], None]]:
    """A function that shows a journal: a live table, or in a log one line for each trial that is over."""
    if not console.out.is_terminal:
        told: set[int] | None = None

        def lines(journal: Journal) -> None:
            nonlocal told
            over = {trial.number for trial in journal.over}
            for number in sorted(over - (told or set())):
                console.out.print(_line(search, journal, journal.trials[number]))
            told = over
            sys.stdout.flush()

        yield lines
        return
    latest: list[Journal] = []

    def picture() -> Group:
        return _picture(search, latest[0]) if latest else Group(Text("starting the cluster"))

    with Live(get_renderable=picture, console=console.out, refresh_per_second=2, transient=True) as live:

        def redraw(journal: Journal) -> None:
            latest[:] = [journal]
            live.refresh()

        yield redraw


def show_outcome(search: SearchConfig, outcome: Outcome) -> None:
    """The front as a table, what decided it, and where everything is."""
    base = RunConfig.model_validate(search.base)
    uri = base.tracking_uri
    option = "" if uri == RunConfig.model_fields["tracking_uri"].default else f" --tracking-uri {quote(uri)}"
    columns = ("", "dataset", "validation %", "test %", "kilobits", "bits/dim", "images", *search.space)
    rows = []
    for member in outcome.members:
        found, is_best = member.result, member is outcome.best
        tested = "-" if "test_accuracy" not in found else spread(found["test_accuracy"], found["test_std"])
        rows.append(
            (
                "best" if is_best else "",
                _reference(search, member),
                f"{member.point.accuracy:.1f}",
                tested,
                f"{member.point.bits / 1000:.1f}",
                _number(found.get("bits_per_dim"), 2),
                str(found.get("images", "-")),
                *(_value(member.params[key]) for key in search.space),
            )
        )
    console.show_rows(f"front of {search.name}: {len(rows)} sets, by bits", columns, rows)
    for objective, values in outcome.importance.values.items():
        ranked = ", ".join(f"{key} {value:.2f}" for key, value in sorted(values.items(), key=lambda item: -item[1]))
        console.out.print(f"what decides {objective} ({outcome.importance.how}): {ranked}")
    if outcome.missing:
        over = search.trials - outcome.missing
        console.out.print(
            f"stopped with {over} of {search.trials} trials over, time_budget_s is spent;"
            f" {RESUMING} and more of it goes on"
        )
    if outcome.best is None:
        console.out.print(f"no set keeps within mode {search.mode}: the alias best was left where it is")
    elif "version" in outcome.best.result:
        console.out.print(f"download condense datasets download {search.name}@best{option}")
    url = registry.compare_url(
        uri, [outcome.parent, *(m.result["run_id"] for m in outcome.members if "run_id" in m.result)]
    )
    console.out.print(f"look     condense ui{option}, then {url}")
    console.out.print(f"files    front.html, front.png, front.parquet in the artifacts of MLflow run {outcome.parent}")


def _picture(search: SearchConfig, journal: Journal) -> Group:
    finished = journal.by_status("finished")
    members = {finished[index].number for index in front([trial.point for trial in finished])}
    table = Table(title=_headline(search, journal), title_justify="left")
    for column in ("trial", "status", "step", "accuracy %", "kilobits", "seconds", *search.space):
        table.add_column(column, justify="left" if column == "status" else "right")
    for trial in [*journal.over[-ROWS:], *journal.by_status("running")]:
        status = "front" if trial.number in members else trial.status
        style = {"front": "bold green", "running": "bold"}.get(status, "dim")
        table.add_row(str(trial.number), status, *_cells(search, trial), style=style)
    return Group(table)


def _cells(search: SearchConfig, trial: Trial) -> tuple[str, ...]:
    step = max(trial.points, default=None)
    point = trial.point if trial.status == "finished" else None if step is None else trial.points[step]
    spent = (trial.ended or time.time()) - trial.started if trial.started else None
    return (
        "-" if step is None else str(step),
        "-" if point is None else f"{point.accuracy:.1f}",
        "-" if point is None else f"{point.bits / 1000:.1f}",
        _number(spent, 0),
        *(_value(trial.params[key]) for key in search.space),
    )


def _headline(search: SearchConfig, journal: Journal) -> str:
    over = len(journal.over)
    left = _remaining_s(search, journal, over)
    remaining = "" if left is None else f", about {_duration(left)} left"
    return f"{search.name}: {over} of {search.trials} trials, {_duration(journal.elapsed_s)}{remaining}"


def _remaining_s(search: SearchConfig, journal: Journal, over: int) -> float | None:
    """Seconds left at the pace so far, and no more than the budget leaves; None before the first trial is over."""
    limits = [] if search.time_budget_s is None else [max(0.0, search.time_budget_s - journal.elapsed_s)]
    if over:
        limits.append(max(0, search.trials - over) * journal.elapsed_s / over)
    return min(limits, default=None)


def _line(search: SearchConfig, journal: Journal, trial: Trial) -> str:
    chosen = "  ".join(f"{key} {_value(trial.params[key])}" for key in search.space)
    step, accuracy, kilobits, seconds, *_ = _cells(search, trial)
    numbers = f"accuracy {accuracy}  kilobits {kilobits}  seconds {seconds}  step {step}"
    start = "" if trial.start is None else f"  from trial {trial.start.trial}"
    ended = f"trial {trial.number} {trial.status}: {numbers}  {chosen}{start}  {trial.reason}".rstrip()
    return f"{_headline(search, journal)}; {ended}"


def _reference(search: SearchConfig, trial: Trial) -> str:
    return f"{search.name}/{trial.result['version']}" if "version" in trial.result else f"trial {trial.number}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
