"""What a search costs beside its trials, and what early stopping saves.

    python -m benchmarks search overhead [--trials 200]     trials that cost a millisecond: the driver's own time
    python -m benchmarks search read SEARCH_FOLDER...        of searches that `condense tune` has made: the share of the
                                                             wall-clock in which no trial computes, the front's
                                                             hypervolume, and what early stopping saves or would save
    python -m benchmarks search compare SEARCH.yaml FOLDER [--set key=value ...]
                                                             the searches of three samplers and three seeds, with the
                                                             same trials and settings, and the table of their fronts;
                                                             those that are in FOLDER already are only read

What early stopping would save is told from searches that ran with early_stopping: null, by playing their reports again
in the order in which they came: exact where the sampler is `random`, whose suggestions no result changes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import condense_alone, options
from condense.condensation import loop as condensation
from condense.condensation.config import RunConfig
from tuning.journal import CONFIG, EVENTS, Journal, Trial, apply_
from tuning.score import Point, front, hypervolume
from tuning.space import Domain, EarlyStopping, SearchConfig, resolve_search
from tuning.stopping import dominated_by
from tuning.trial import Report

SAMPLERS = ("tpe", "random", "grid")
LEVELS = {"bits_weight": 4, "images.learning_rate": 2}  # of a grid, in place of a range
RULES = [EarlyStopping(grace=grace, margin=margin) for grace in (0.25, 0.5) for margin in (0.0, 3.0, 5.0, 8.0)]


def overhead(trials: int) -> None:
    """Prints the time between ends of trials that cost nothing, by quarter, and the driver's memory."""
    from tuning.search import run

    def objective(number: int, values: dict[str, Any], report: Report) -> dict[str, Any]:
        time.sleep(0.001)
        accuracy = 100 * math.exp(-values["bits_weight"] / 100)
        report(1, Point(accuracy, 1e6 / values["bits_weight"]))
        return {"accuracy": accuracy, "bits": 1e6 / values["bits_weight"], "seconds": 0.001}

    ends: list[float] = []
    memory: list[float] = []

    def changed(journal: Journal) -> None:
        over = sum(trial.status == "finished" for trial in journal.trials.values())
        while len(ends) < over:
            ends.append(time.perf_counter())
            memory.append(_resident_mib())

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = {"workers": 0, "tracking_uri": f"sqlite:///{folder}/mlflow.db", "output": str(folder / "sets")}
        space = {"bits_weight": {"log_uniform": [1, 1000]}, "images_per_class": {"uniform": [1, 50]}}
        values = {"name": "fake", "base": base, "space": space, "trials": trials, "storage": folder, "concurrent": 2}
        started, cpu = time.perf_counter(), time.process_time()
        run(SearchConfig.model_validate(values), changed=changed, objective=lambda parent: objective)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    gaps = [1000 * (later - earlier) for earlier, later in itertools.pairwise(ends)]
    quarter = len(gaps) // 4
    print(f"{len(ends)} trials, {wall:.1f} s in all, {cpu:.1f} CPU-seconds of the driver")
    print("| trials | ms a trial (median) | ms a trial (mean) | driver MiB at the end |")
    print("|---|---|---|---|")
    for index in range(4):
        part = gaps[index * quarter : (index + 1) * quarter]
        at = (index + 1) * quarter
        print(f"| to {at} | {statistics.median(part):.0f} | {statistics.mean(part):.0f} | {memory[at]:.0f} |")


def bare_trial(number: int, values: dict[str, Any], report: Report) -> dict[str, Any]:
    """A trial that condenses in its own process and keeps nothing: its two numbers, and its CPU-seconds."""
    before = time.process_time()
    config = RunConfig.model_validate(values)
    condensation.REAL_BITS_IMAGES = 20  # bits of real images are no part of what is compared
    facts = condense_alone(config).provenance
    found = {"accuracy": facts["validation"]["accuracy_mean"], "bits": facts["bits"]["per_set"]}
    return {**found, "cpu_seconds": time.process_time() - before}


def compare(config: Path, folder: Path, overrides: list[str], seeds: list[int]) -> None:
    """Runs what is missing, one search after another, and prints the table.

    A sampler sees the same space; the grid takes `LEVELS` values of every range, each in the middle of its share. The
    hypervolume's reference is the worst accuracy and the most bits that any trial of all the searches ended with.
    """
    from tuning.search import run

    ends: dict[str, list[Path]] = {sampler: [] for sampler in SAMPLERS}
    for seed, sampler in itertools.product(seeds, SAMPLERS):
        name = f"{sampler}-{seed}"
        ends[sampler].append(folder / name)
        places = [f"storage={folder}", f"base.output={folder}/sets", f"base.storage={folder}/runs"]
        own = [f"name={name}", f"seed={seed}", f"base.seed={seed}"]
        store = f"base.tracking_uri=sqlite:///{(folder / 'mlflow.db').absolute()}"
        search = resolve_search(config, [*overrides, *places, *own, store])
        space = gridded(search.space) if sampler == "grid" else search.space
        search = search.model_copy(update={"space": space, "sampler": sampler})
        if not (folder / name / "done").exists():
            print(f"search {name}", flush=True)
            run(search, resume=(folder / name / CONFIG).exists(), objective=lambda parent: bare_trial)
            (folder / name / "done").touch()
    found = {sampler: [_trials(path)[1] for path in paths] for sampler, paths in ends.items()}
    finished = {
        sampler: [[trial for trial in trials.values() if trial.status == "finished"] for trials in searches]
        for sampler, searches in found.items()
    }
    points = [trial.point for searches in finished.values() for trials in searches for trial in trials]
    worst = Point(min(point.accuracy for point in points), max(point.bits for point in points))
    print(f"reference: {worst.accuracy:.1f} %, {worst.bits / 1000:.1f} kilobits")
    print("| sampler | hypervolume, % of the box | by seed | trials finished, stopped | front | CPU-s |")
    print("|---|---|---|---|---|---|")
    for sampler, searches in finished.items():
        box = (100 - worst.accuracy) * worst.bits / 100
        volumes = [hypervolume([trial.point for trial in trials], worst) / box for trials in searches]
        fronts = [len(front([trial.point for trial in trials])) for trials in searches]
        stopped = [sum(t.status == "stopped" for t in trials.values()) for trials in found[sampler]]
        cpu = [sum(trial.result["cpu_seconds"] for trial in trials) for trials in searches]
        counts = ", ".join(f"{len(trials)}+{less}" for trials, less in zip(searches, stopped, strict=True))
        print(
            f"| {sampler} | {statistics.mean(volumes):.1f} ± {statistics.stdev(volumes):.1f} "
            f"| {', '.join(f'{volume:.1f}' for volume in volumes)} | {counts} | {', '.join(map(str, fronts))} "
            f"| {', '.join(f'{seconds:.0f}' for seconds in cpu)} |"
        )


def gridded(space: dict[str, Domain]) -> dict[str, Domain]:
    """The space with values in place of ranges."""
    found = {}
    for key, domain in space.items():
        if domain.choice is None:
            count, (low, high) = LEVELS[key], domain.bounds
            shares = [(index + 0.5) / count for index in range(count)]
            log = domain.log_uniform is not None
            values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
            domain = Domain(choice=tuple(values))
        found[key] = domain
    return found


def _trials(folder: Path) -> tuple[list[dict[str, Any]], dict[int, Trial]]:
    """The events of a search's journal, and the trials that they make."""
    events = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    trials: dict[int, Trial] = {}
    for event in events:
        apply_(trials, event)
    return events, trials


def read(folder: Path) -> None:
    """Prints what a search's journal says."""
    events, trials = _trials(folder)
    config = json.loads((folder / CONFIG).read_text())
    finished = [trial for trial in trials.values() if trial.status == "finished"]
    members = [finished[index] for index in front([trial.point for trial in finished])]
    reference = Point(0.0, max(trial.point.bits for trial in finished))
    volume = hypervolume([trial.point for trial in finished], reference) / (100 * reference.bits)
    statuses = {status: sum(trial.status == status for trial in trials.values()) for status in ("stopped", "failed")}
    print(f"{folder.name}: {len(trials)} trials, {statuses}; front {[trial.number for trial in members]},")
    print(f"  hypervolume {volume:.3f} of the box from 0 % and {reference.bits / 1000:.0f} kilobits")
    begin, end = events[0]["time"], max(trial.ended for trial in trials.values())
    spans = [tuple(trial.result["computed"]) for trial in finished if "computed" in trial.result]
    spans += [(trial.started, trial.ended) for trial in trials.values() if trial.status == "stopped"]
    if spans:
        idle = 1 - _covered(spans, begin, end) / (end - begin)
        print(
            f"  {end - begin:.0f} s from the first event to the last end; in {100 * idle:.0f} % of it no trial computes"
        )
    total = config["base"]["outer_steps"]
    for rule in RULES if not statuses["stopped"] else []:
        saved, dropped = _replayed(events, trials, {trial.number for trial in members}, total, rule)
        told = f"{100 * saved:.0f} % of the steps saved, {dropped} of the front lost"
        print(f"  grace {rule.grace:g} margin {rule.margin:g}: {told}")
    if statuses["stopped"]:
        stopped = [trial for trial in trials.values() if trial.status == "stopped"]
        whole = sum(total - _ahead(trial) for trial in [*stopped, *finished])
        saved = sum(total - max(trial.points, default=_ahead(trial)) for trial in stopped) / whole
        print(f"  early stopping saved {100 * saved:.0f} % of the outer steps")


def _ahead(trial: Trial) -> int:
    """Outer steps that a warm trial need not do."""
    return 0 if trial.start is None else trial.start.ahead


def _replayed(
    events: list[dict[str, Any]], ended: dict[int, Trial], members: set[int], total: int, rule: EarlyStopping
) -> tuple[float, int]:
    """Share of outer steps that the rule would have saved, and how many of the front's members it would have lost."""
    trials: dict[int, Trial] = {}
    stopped: dict[int, int] = {}
    for event in events:
        number = event.get("trial")
        if event["event"] == "suggested":
            trials[number] = Trial(number, event["params"], event["identity"])
        elif event["event"] == "point" and number not in stopped:
            trials[number].points[event["step"]] = Point(event["accuracy"], event["bits"])
            if dominated_by(trials[number], event["step"], total, trials.values(), rule):
                stopped[number] = event["step"]
    run = [trial for trial in ended.values() if trial.status == "finished"]
    saved = sum(total - step for step in stopped.values()) / (total * len(run))
    return saved, len(members & stopped.keys())


def _covered(spans: list[tuple[float, ...]], begin: float, end: float) -> float:
    """Seconds of [begin, end] that some span covers."""
    covered, until = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, until), min(stop, end)
        if stop > start:
            covered, until = covered + stop - start, stop
    return covered


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Reads the arguments."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = options(__doc__, rows=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("overhead").add_argument("--trials", type=int, default=200)
    commands.add_parser("read").add_argument("folders", type=Path, nargs="+")
    compared = commands.add_parser("compare")
    compared.add_argument("config", type=Path)
    compared.add_argument("folder", type=Path)
    compared.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    compared.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the search")
    arguments = parser.parse_args()
    if arguments.command == "overhead":
        overhead(arguments.trials)
    elif arguments.command == "compare":
        compare(arguments.config, arguments.folder.absolute(), arguments.set, arguments.seeds)
    else:
        for folder in arguments.folders:
            read(folder)


if __name__ == "__main__":
    main()
