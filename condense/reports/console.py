"""Writes what a person sees in a terminal: progress, result tables, one-line errors."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from condense.flow.bits import BitsReport
from condense.reports.card import control_bits, spread, strength

if TYPE_CHECKING:
    from condense.workers.estimate import Estimate

LOG_WIDTH = 140  # of tables in a log, which has no width of its own

# What paths and names hold in brackets or between colons is neither markup nor an emoji.
_PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
out = Console(width=None if sys.stdout.isatty() else LOG_WIDTH, **_PLAIN)
err = Console(stderr=True, **_PLAIN)

LOG_LINE_EVERY_S = 10.0  # in a job log, which is no terminal


def show_config(title: str, values: Mapping[str, Any]) -> None:
    """The resolved settings as YAML."""
    out.print(title, style="bold")
    out.print(yaml.safe_dump(dict(values), sort_keys=False).rstrip(), style="dim")


class _ShownOnce(logging.Handler):
    """Prints each message once: in one process a source may be opened several times."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            out.print(message)


@contextmanager
def splits_shown() -> Iterator[None]:
    """Shows which files each source that is opened in this process trains, chooses and tests on."""
    told, handler = logging.getLogger("condense.data.sources"), _ShownOnce()
    level = told.level
    told.addHandler(handler)
    told.setLevel(logging.INFO)
    try:
        yield
    finally:
        told.removeHandler(handler)
        told.setLevel(level)


@contextmanager
def progress_shown() -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """A function (stage, done, total, values) that shows progress: a bar, or a line now and then in a log."""
    if not out.is_terminal:
        last = ("", 0.0)
        latest: dict[str, float] = {}

        def line(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
            nonlocal last
            now = time.monotonic()
            if stage != last[0]:
                latest.clear()
            latest.update(values)
            if stage != last[0] or now - last[1] > LOG_LINE_EVERY_S or done == total:
                out.print(f"{stage} {done}/{total} {_numbers(latest)}".rstrip())
                last = (stage, now)
                sys.stdout.flush()

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("[dim]{task.fields[numbers]}"), console=out) as bars:
        task = bars.add_task("starting workers", total=None, numbers="")
        shown: dict[str, float] = {}

        def bar(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
            shown.update(values)
            bars.update(task, description=stage, completed=done, total=total, numbers=_numbers(shown))

        yield bar


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not name.startswith("seconds/"))


def show_estimate(title: str, found: Estimate) -> None:
    """What a run will take, part by part, and what it would take on other numbers of workers."""
    table = Table(title=f"{title} on machines like this one", title_justify="left")
    layouts = sorted((found.chosen, *found.others), key=lambda at: at.workers)
    for column in ("workers", "threads each", "whole run", *found.chosen.seconds, "memory of each"):
        table.add_column(column, justify="right")
    for at in layouts:
        name = "0 (this process)" if at.workers == 0 else str(at.workers)
        times = (f"{seconds:,.0f} s" for seconds in (at.total_s, *at.seconds.values()))
        style = "bold" if at is found.chosen else None
        table.add_row(name, str(at.threads), *times, f"{at.memory_mib:,.0f} MiB", style=style)
    out.print(table)
    out.print(
        f"bold: as the config stands. {found.measured}; the start of Ray and MLflow is a constant of two idle cores"
    )
    if found.device_mib:
        out.print(f"memory of each GPU: {found.device_mib:,.0f} MiB")
    out.print(f"checkpoints: {found.checkpoint_bytes / 1e6:,.2f} MB in all that are kept at once")
    free = f"{found.memory_available_mib:,.0f} MiB free here"
    out.print(f"suggested: workers={found.best.workers} ({found.best.total_s:,.0f} s; {free})")


def show_result(facts: Mapping[str, Any], class_count: int, images: int) -> None:
    """The table at the end of a run."""
    bits, tested = facts["bits"], "evaluation" in facts
    evaluation = facts["evaluation"] if tested else facts["validation"]
    learners = "one learner" if evaluation.get("learners") == 1 else f"{evaluation.get('learners')} learners"
    how = f"test accuracy % ({evaluation['recipe']}, {learners})" if tested else "validation %"
    table = Table(title=f"{images} images, {class_count} classes", title_justify="left")
    table.add_column("trained on")
    table.add_column(how, justify="right")
    table.add_column("bits per dim", justify="right")
    table.add_row("condensed set", _accuracy(evaluation), _optional(bits["per_dim_after"]), style="bold")
    for name, control in facts["controls"].items():
        how = f" ({words})" if (words := strength(control)) else ""
        table.add_row(name.replace("_", " ") + how, _accuracy(control), control_bits(control))
    out.print(table)
    labels = bits.get("labels_per_set")
    whole = f"{_optional(bits['per_set'], 0)} bits" + (f" (soft labels {labels:,})" if labels else "")
    out.print(
        f"bits per dim: real {_optional(bits['per_dim_before'])} -> condensed {_optional(bits['per_dim_after'])}; "
        f"whole set {whole}, {bits['png_bytes']} PNG bytes",
    )
    parts = facts["seconds_by_part"]
    shares = ", ".join(f"{part} {100 * spent / sum(parts.values()):.0f} %" for part, spent in parts.items())
    why = {"time": " (the time given)", "settled": " (the validation curve had settled)"}.get(facts["ended_by"], "")
    stages = ", ".join(f"{stage} {spent:.0f}" for stage, spent in facts["seconds_by_stage"].items() if spent >= 0.5)
    out.print(f"{facts['seconds']:.0f} s before it is written: {stages}")
    out.print(f"{facts['outer_steps']} outer steps{why}: {shares}")


def _accuracy(found: Mapping[str, Any]) -> str:
    return spread(found["accuracy_mean"], found["accuracy_std"])


def _optional(value: float | None, places: int = 2) -> str:
    return "-" if value is None else f"{value:,.{places}f}"


def show_bits(title: str, report: BitsReport, labels: torch.Tensor, names: Sequence[str]) -> None:
    """Bits per class and in all, and their histogram."""
    table = Table(title=title, title_justify="left")
    columns = ("images", "bits per dim", "Monte-Carlo error", "min", "max", "bits per image", "PNG bytes per image")
    table.add_column("class")
    for column in columns:
        table.add_column(column, justify="right")
    rows = [(name, labels == label) for label, name in enumerate(names)]
    if len(names) > 1:
        rows.append(("all", torch.ones_like(labels, dtype=torch.bool)))
    for name, mask in rows:
        if not bool(mask.any()):
            continue
        own = report.of(mask)
        table.add_row(
            name,
            str(int(mask.sum())),
            f"{own.mean:.3f}",
            "-" if own.standard_error is None else f"{own.standard_error:.1g}",
            f"{float(own.bits_per_dim.min()):.3f}",
            f"{float(own.bits_per_dim.max()):.3f}",
            f"{float(own.bits.mean()):.0f}",
            f"{float(own.png_bytes.double().mean()):.0f}",
            style="bold" if name == "all" else None,
        )
    out.print(table)
    out.print("images by bits per dim")
    for line in histogram_lines(report.bits_per_dim):
        out.print(line)


def histogram_lines(values: torch.Tensor, bins: int = 12, width: int = 60) -> list[str]:
    """Returns one line a bin of the values (N,): its lower and upper edge, a bar of at most `width` characters, the
    count.
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        high, bins = low + 1e-9, 1
    counts = torch.histc(values.double(), bins, low, high).tolist()
    edges = torch.linspace(low, high, bins + 1).tolist()
    lines = []
    for number, count in enumerate(counts):
        eighths = math.ceil(8 * width * count / max(counts))
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        lines.append(f"{edges[number]:7.3f} .. {edges[number + 1]:7.3f} {bar} {count:.0f}")
    return lines


def show_flows(cards: Mapping[str, Mapping[str, Any]]) -> None:
    """The main numbers of flows, by name, from their cards: one row for each test set."""
    table = Table(title="flows", title_justify="left")
    for column in ("flow", "digest", "parameters", "CPU-seconds", "test set", "bits per dim", "PNG bits per dim"):
        table.add_column(column, justify="left" if column in ("flow", "digest", "test set") else "right")
    for name, card in cards.items():
        about = (name, str(card["digest"])[:12], f"{card['parameters']:,}", f"{_cpu_seconds(card):,.0f}")
        for row, (test, found) in enumerate(card["held_out"].items()):
            start = ("",) * len(about) if row else about
            table.add_row(*start, test, f"{found['bits_per_dim']:.3f}", f"{found['png_bits_per_dim']:.3f}")
    out.print(table)


def _cpu_seconds(card: Mapping[str, Any]) -> float:
    """Returns what a flow cost, and before it the flow that it started from."""
    start = card.get("start")
    return float(card["cpu_seconds"]) + (_cpu_seconds(start) if start else 0)


def show_rows(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A plain table."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def show_error(error: Exception) -> None:
    """One clear message on standard error."""
    err.print("error ", style="bold red", end="")
    err.print(str(error))
