"""Keeps what a search knows on disk: its config, and one line for everything that happened. A kill loses nothing.

FOLDER/search.json     the resolved config; a search goes on only with the same
FOLDER/trials.jsonl    events, in order, appended by the driver alone
FOLDER/lock            held while a driver works; the system frees it when the process ends, however it ends
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from condense.errors import ConfigError, OutputError
from condense.files import check_folder_writable, pack_line, unpack_line, unpack_lines, write_whole
from condense.workers.tracking import flatten
from tuning.score import Point
from tuning.space import SearchConfig

CONFIG = "search.json"
EVENTS = "trials.jsonl"

Status = Literal["running", "finished", "stopped", "failed"]
OVER: tuple[Status, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Start:
    """The finished trial that another starts from, the file and content of its set, the outer steps this replaces."""

    trial: int
    file: str
    digest: str
    ahead: int


@dataclass
class Trial:
    """One trial: what was chosen, its sets along the way by outer step, and how it ended."""

    number: int
    params: dict[str, Any]
    identity: str
    start: Start | None = None  # None is a cold one
    status: Status = "running"
    points: dict[int, Point] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)  # of a finished trial: accuracy, bits, version, folder ...
    reason: str = ""  # of a failed or stopped one
    started: float = 0.0  # seconds since the epoch, of the latest start
    ended: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it has ended, however it did."""
        return self.status in OVER

    @property
    def point(self) -> Point:
        """Where a finished trial ended."""
        return Point(float(self.result["accuracy"]), float(self.result["bits"]))


class Journal:
    """The state of one search. Every method that changes it appends an event first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials: dict[int, Trial] = {}
        self.parent_run: str | None = None
        self.spent_s = 0.0  # by sittings that are over
        self._opened = time.time()
        for event in self._read():
            apply_(self.trials, event)
            self.parent_run = event.get("run_id", self.parent_run)
        self._append({"event": "opened"})

    @property
    def elapsed_s(self) -> float:
        """Seconds that the search has taken, all sittings together."""
        return self.spent_s + time.time() - self._opened

    @property
    def over(self) -> list[Trial]:
        """The trials that have ended, by number."""
        return [trial for trial in self.trials.values() if trial.over]

    def by_status(self, status: Status) -> list[Trial]:
        """Returns the trials that stand so, by number."""
        return [trial for trial in self.trials.values() if trial.status == status]

    def suggested(self, params: Mapping[str, Any], identity: str, start: Start | None = None) -> Trial:
        """Returns a new trial."""
        number = max(self.trials, default=-1) + 1
        warm = {} if start is None else {"start": asdict(start)}
        self._record("suggested", number, params=dict(params), identity=identity, **warm)
        return self.trials[number]

    def started(self, number: int) -> None:
        """A trial begins, or goes on after an interruption."""
        self._record("started", number)

    def point(self, number: int, step: int, point: Point) -> None:
        """A trial's set after an outer step; a repeated step changes nothing."""
        if step not in self.trials[number].points:
            self._record("point", number, step=step, accuracy=point.accuracy, bits=point.bits)

    def finished(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial came to its end."""
        self._record("finished", number, result=dict(result))

    def stopped(self, number: int, reason: str) -> None:
        """A trial was stopped early."""
        self._record("stopped", number, reason=reason)

    def failed(self, number: int, reason: str) -> None:
        """A trial failed."""
        self._record("failed", number, reason=reason)

    def judged(self, number: int, test: Mapping[str, Any]) -> None:
        """A member of the front was tested: adds to its result."""
        self._record("judged", number, result=dict(test))

    def belongs_to(self, run_id: str) -> None:
        """Keeps the parent MLflow run."""
        self._append({"event": "parent", "run_id": run_id})
        self.parent_run = run_id

    def _record(self, event: str, number: int, **values: Any) -> None:
        record = {"event": event, "trial": number, **values}
        self._append(record)
        apply_(self.trials, record)

    def _append(self, record: dict[str, Any]) -> None:
        # A killed process loses nothing that was flushed; only a machine that stops could, and then a trial runs again.
        record["time"] = time.time()
        try:
            with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write(pack_line(record))
        except OSError as error:
            raise OutputError(f"{self.folder / EVENTS} cannot be written: {error}", "free its disk") from None

    def _read(self) -> list[dict[str, Any]]:
        """Returns the events so far; a line that a kill cut off is taken away. Adds up the sittings."""
        path = self.folder / EVENTS
        if not path.exists():
            return []
        *lines, cut_off = path.read_bytes().split(b"\n")
        if cut_off:
            os.truncate(path, path.stat().st_size - len(cut_off))
        try:
            events = unpack_lines(lines)
        except ValueError as error:
            raise ConfigError(f"{path}, {error}", "start the search anew under another name") from None
        previous = None
        for event in events:
            if previous is not None and event["event"] != "opened":
                self.spent_s += event["time"] - previous
            previous = event["time"]
        return events


def apply_(trials: dict[int, Trial], event: Mapping[str, Any]) -> None:
    """What an event of the journal changes in the trials, by number."""
    kind, number = event["event"], event.get("trial")
    if number is None:
        return
    if kind == "suggested":
        start = Start(**event["start"]) if "start" in event else None
        trials[number] = Trial(number, event["params"], event["identity"], start)
    trial = trials[number]
    if kind == "started":
        trial.started = event["time"]
    elif kind == "point":
        trial.points[event["step"]] = Point(event["accuracy"], event["bits"])
    elif kind == "judged":
        trial.result = trial.result | event["result"]
    elif kind in OVER:
        trial.status, trial.ended = kind, event["time"]
        trial.result, trial.reason = event.get("result", {}), event.get("reason", "")


def check_opening(search: SearchConfig, *, resume: bool) -> None:
    """Asks whether a search can be begun, or resumed; changes nothing.

    Raises:
        ConfigError: a search of this name is there already, or none to resume, or its config was another.
        OutputError: the storage cannot be written.
    """
    folder, config = search.folder, search.folder / CONFIG
    check_folder_writable(search.storage, "set storage=FOLDER")
    if resume and not config.exists():
        raise ConfigError(f"there is no search {search.name!r} in {search.storage} to resume", "leave out --resume")
    if resume:
        _check_same(json.loads(config.read_text()), _decisive(search), folder)
    elif config.exists():
        raise ConfigError(
            f"search {search.name!r} is in {folder} already",
            "go on with it by --resume, or give another name or storage",
        )


def trials_over(search: SearchConfig) -> int | None:
    """Returns how many trials a search of this name and config has behind it; None without one. Changes nothing."""
    config, events = search.folder / CONFIG, search.folder / EVENTS
    if not config.exists() or not events.exists() or json.loads(config.read_text()) != _decisive(search):
        return None
    trials: dict[int, Trial] = {}
    for line in events.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # a line that a kill cut off
            apply_(trials, unpack_line(line))
    return sum(trial.over for trial in trials.values())


@contextmanager
def open_journal(search: SearchConfig, *, resume: bool) -> Iterator[Journal]:
    """The journal of a search, held by this process alone.

    Raises:
        ConfigError: as `check_opening`, or the search is at work in another process.
        OutputError: the storage cannot be written.
    """
    folder = search.folder
    check_opening(search, resume=resume)
    check_folder_writable(folder, "set storage=FOLDER")
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"search {search.name!r} is at work in another process", "wait for its end") from None
        if not resume:
            write_whole(folder / CONFIG, json.dumps(_decisive(search), indent=2).encode())
        yield Journal(folder)


def _decisive(search: SearchConfig) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(search.decisive())))


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    old, new = flatten(before), flatten(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"the search in {folder} began with {key}={old.get(key)!r}, now it is {new.get(key)!r}",
                "give the changed search another name; trials, time_budget_s and concurrent may change",
            )
