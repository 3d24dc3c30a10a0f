"""What a search knows survives kills; trials come from the sampler, stop early, and are drawn as files."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from condense.errors import ConfigError
from tests.conftest import Command
from tuning import report
from tuning.importance import importance
from tuning.journal import EVENTS, Journal, Start, Trial, open_journal, trials_over
from tuning.score import Point
from tuning.space import EarlyStopping, SearchConfig, resolve_search
from tuning.stopping import dominated_by

SPACE = {"bits_weight": {"log_uniform": [1, 100]}, "images_per_class": {"choice": [1, 2]}}


def search(folder: Path, **changes: Any) -> SearchConfig:
    values = {"name": "tiny", "base": {"source": "digits"}, "space": SPACE, "storage": folder, "trials": 4}
    return SearchConfig.model_validate({**values, **changes})


def finish(journal: Journal, weight: float, ipc: int, accuracy: float, bits: float) -> Trial:
    trial = journal.suggested({"bits_weight": weight, "images_per_class": ipc}, f"{weight}/{ipc}")
    journal.started(trial.number)
    journal.point(trial.number, 3, Point(accuracy, bits))
    journal.finished(trial.number, {"accuracy": accuracy, "bits": bits})
    return trial


def test_events_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    with open_journal(search(tmp_path), resume=False) as journal:
        finish(journal, 5.0, 1, 70.0, 1e4)
        unfinished = journal.suggested({"bits_weight": 2.0, "images_per_class": 2}, "b")
        journal.point(unfinished.number, 2, Point(30.0, 1e5))
        journal.belongs_to("run")
        trials = journal.trials
    path = tmp_path / "tiny" / EVENTS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "finished", "tri')
    with open_journal(search(tmp_path), resume=True) as journal:
        assert journal.trials == trials
        assert journal.parent_run == "run"
        assert [trial.status for trial in journal.trials.values()] == ["finished", "running"]
        journal.stopped(1, "hopeless")
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()[-2:]] == ["opened", "stopped"]


def test_a_search_is_begun_once_resumed_unchanged_and_by_one_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no search 'tiny'"), open_journal(search(tmp_path), resume=True):
        pass
    with open_journal(search(tmp_path), resume=False):
        with (
            pytest.raises(ConfigError, match="at work in another process"),
            open_journal(search(tmp_path), resume=True),
        ):
            pass
        with pytest.raises(ConfigError, match="already"), open_journal(search(tmp_path), resume=False):
            pass
    before = {path: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    changed = search(tmp_path, space={**SPACE, "images_per_class": {"choice": [1, 3]}})
    with pytest.raises(ConfigError, match=r"space.images_per_class.choice"), open_journal(changed, resume=True):
        pass
    assert {path: path.read_bytes() for path in (tmp_path / "tiny").iterdir()} == before
    with open_journal(search(tmp_path, trials=9, concurrent=1, time_budget_s=5), resume=True):
        pass


def test_sittings_add_up_without_the_time_between_them(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    times = [("opened", 0), ("parent", 10), ("opened", 1000), ("parent", 1005)]
    lines = [json.dumps({"event": event, "run_id": "run", "time": time}) for event, time in times]
    (folder / EVENTS).write_text("\n".join(lines) + "\n")
    assert Journal(folder).spent_s == 15


def trial(number: int, **points: Point) -> Trial:
    steps = {int(step.removeprefix("at")): point for step, point in points.items()}
    return Trial(number, {}, str(number), points=steps)


def test_a_trial_is_stopped_where_another_is_better_at_the_same_step_by_the_margin_after_the_grace_period() -> None:
    good = trial(0, at2=Point(80, 100), at4=Point(90, 50), at6=Point(90, 50))
    bad = trial(1, at2=Point(10, 900), at4=Point(86, 51), at6=Point(10, 900))
    others, rule = [good, bad], EarlyStopping(grace=0.5, margin=3)
    assert dominated_by(bad, 2, 6, others, rule) is None
    assert dominated_by(bad, 4, 6, others, rule) is good
    assert dominated_by(bad, 6, 6, others, rule) is None
    assert dominated_by(bad, 4, 6, others, EarlyStopping(grace=0.5, margin=5)) is None
    assert dominated_by(bad, 4, 6, others, None) is None
    assert dominated_by(good, 4, 6, others, rule) is None


def test_suggestions_begin_with_what_was_interrupted_repeat_nothing_and_end_with_the_space(tmp_path: Path) -> None:
    from tuning.samplers import JournalSearcher

    small = search(tmp_path, space={"images_per_class": {"choice": [1, 2, 3]}}, sampler="random")
    with open_journal(small, resume=False) as journal:
        first = JournalSearcher(small, journal, {"workers": 0})
        one, two = first.suggest("a"), first.suggest("b")
        assert isinstance(one, dict)
        assert isinstance(two, dict)
        assert one["config"]["evaluation"]["test"] is False
        journal.finished(one["number"], {"accuracy": 50.0, "bits": 1e4})
        first.on_trial_complete("a", {})
    with open_journal(small, resume=True) as journal:
        again = JournalSearcher(small, journal, {"workers": 0})
        assert again.suggest("c") == two
        journal.stopped(two["number"], "hopeless")
        again.on_trial_complete("c", {})
        three = again.suggest("d")
        assert isinstance(three, dict)
        assert {each["config"]["images_per_class"] for each in (one, two, three)} == {1, 2, 3}
        journal.failed(three["number"], "no luck")
        again.on_trial_complete("d", error=True)
        assert again.suggest("e") == "FINISHED"
        states = [each.state.name for each in again.study.trials if each.state.name != "FAIL"]
        assert states.count("PRUNED") == 1


def test_a_grid_gives_every_combination_once_also_when_it_goes_on(tmp_path: Path) -> None:
    from tuning.samplers import JournalSearcher

    space = {"bits_weight": {"choice": [1.0, 10.0, 100.0]}, "images_per_class": {"choice": [1, 2]}}
    wanted = {(weight, ipc) for weight in (1.0, 10.0, 100.0) for ipc in (1, 2)}
    named = search(tmp_path, space=space, sampler="grid", trials=9)
    for resume in (False, True):
        with open_journal(named, resume=resume) as journal:
            suggestions = JournalSearcher(named, journal, {"workers": 0})
            for count in range(3 if not resume else 9):
                task = suggestions.suggest(str(count))
                if task == "FINISHED":
                    break
                assert isinstance(task, dict)
                if resume or count < 2:  # the third of the first sitting is interrupted
                    journal.finished(task["number"], {"accuracy": 50.0, "bits": 1e4})
                    suggestions.on_trial_complete(str(count), {})
            trials = list(journal.trials.values())
    assert len(trials) == 6
    assert {(trial.params["bits_weight"], trial.params["images_per_class"]) for trial in trials} == wanted


def test_a_warm_trial_starts_from_the_nearest_set_of_its_kind_does_fewer_steps_and_stays_so(tmp_path: Path) -> None:
    from tuning.samplers import JournalSearcher

    space = {"bits_weight": {"choice": [1.0, 10.0, 25.0, 400.0]}, "images_per_class": {"choice": [1, 2]}}
    base = {"source": "digits", "outer_steps": 30, "images": {"learning_rate": 0.2}}
    rule = {"steps": 0.4, "rate": 0.25}
    warm = search(tmp_path, space=space, base=base, sampler="grid", trials=8, warm_start=rule)
    tasks = {}
    with open_journal(warm, resume=False) as journal:
        suggestions = JournalSearcher(warm, journal, {"workers": 0})
        for count in range(8):
            task = suggestions.suggest(str(count))
            assert isinstance(task, dict)
            number = task["number"]
            tasks[number] = task
            if count < 7:
                found = {
                    "accuracy": 50.0,
                    "bits": 1e4,
                    "folder": f"/sets/{number}",
                    "content_digest": f"digest{number}",
                }
                journal.finished(number, found)
                suggestions.on_trial_complete(str(count), {})
        trials = dict(journal.trials)
    starts = 0
    for number, trial in trials.items():
        weight, ipc = trial.params["bits_weight"], trial.params["images_per_class"]
        before = [
            other for other in trials.values() if other.number < number and other.params["images_per_class"] == ipc
        ]
        distances = {other.number: abs(math.log(other.params["bits_weight"] / weight)) for other in before}
        nearest = min(distances, key=lambda key: distances[key], default=None)
        run = tasks[number]["config"]
        if nearest is None or distances[nearest] > math.log(4):
            assert trial.start is None
            assert (run["outer_steps"], run["images"]["init"]) == (30, "noise")
            continue
        starts += 1
        assert trial.start is not None
        assert (trial.start.trial, trial.start.digest, trial.start.ahead) == (nearest, f"digest{nearest}", 18)
        assert (run["outer_steps"], run["images"]["learning_rate"]) == (12, 0.05)
        assert run["images"]["init"] == f"set:/sets/{nearest}/data.parquet"
        assert run["images"]["init_digest"] == f"digest{nearest}"
    assert starts == 2  # weights 10 and 25 of each number of images
    with open_journal(warm, resume=True) as journal:
        assert journal.trials == trials
        again = JournalSearcher(warm, journal, {"workers": 0})
        assert again.suggest("again") == tasks[7]
        assert again.suggest("more") == "FINISHED"


def test_steps_of_a_warm_trial_count_from_where_its_start_had_come(tmp_path: Path) -> None:
    from tuning.trial_events import EarlyStopper

    warm = search(tmp_path, warm_start={}, early_stopping={"grace": 0.5, "margin": 3})
    with open_journal(warm, resume=False) as journal:
        finish(journal, 5.0, 1, 70.0, 1e4)
        journal.point(0, 8, Point(69.0, 2e4))
        trial = journal.suggested({"bits_weight": 6.0, "images_per_class": 1}, "b", Start(0, "file", "digest", 5))
        stopping = EarlyStopper(warm, journal, lambda: None)
        decided = stopping._decide(trial.number, {"outer_steps": 5}, {"step": 3, "accuracy": 60.0, "bits": 3e4})
        assert decided == "STOP"
        assert set(trial.points) == {8}
        assert trial.reason == "dominated by trial 0 at outer step 8 of 10"


@pytest.mark.parametrize("count", [6, 20])
def test_the_field_that_decides_is_the_important_one(count: int, tmp_path: Path) -> None:
    wide = search(tmp_path, trials=count)
    with open_journal(wide, resume=False) as journal:
        for index in range(count):
            ipc = 1 + (index // 2) % 2
            weight = 1.0 + 90.0 * ((7 * index) % count) / count
            finish(journal, weight, ipc, 50.0 + 20 * ipc + 0.001 * index, 1e5 / weight)
        found = importance(wide, journal)
    assert found.method == ("fanova" if count >= 16 else "rank correlation")
    assert found.values["accuracy"]["images_per_class"] > found.values["accuracy"]["bits_weight"]
    assert found.values["bits"]["bits_weight"] > found.values["bits"]["images_per_class"]


def test_the_files_of_a_search_show_every_trial_and_need_no_network(tmp_path: Path) -> None:
    named = search(tmp_path, mode="best-under-budget", kilobits=15)
    with open_journal(named, resume=False) as journal:
        cheap, dear = finish(journal, 50.0, 1, 60.0, 1e4), finish(journal, 2.0, 2, 90.0, 4e4)
        finish(journal, 4.0, 1, 55.0, 2e4)
        journal.failed(journal.suggested({"bits_weight": 1.0, "images_per_class": 1}, "x").number, "no </script> luck")
        found = importance(named, journal)
        report.write(tmp_path, named, list(journal.trials.values()), [cheap, dear], cheap, found)
    table = pq.read_table(tmp_path / report.TRIALS_TABLE).to_pydict()
    assert table["pareto"] == [True, True, False, False]
    assert table["status"] == ["finished"] * 3 + ["failed"]
    assert pq.read_table(tmp_path / report.FRONT_TABLE).to_pydict()["bits"] == [1e4, 4e4]
    assert Image.open(tmp_path / report.FRONT_PNG).size[0] > 500
    page = (tmp_path / report.FRONT_HTML).read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "src=" not in page.replace("picture.src", "")
    data = json.loads(page.split("const data = ")[1].split(";\n")[0])
    assert [point["pareto"] for point in data["points"]] == [True, True, False]
    assert math.isclose(data["points"][1]["kilobits"], 40)


def test_a_search_whose_trials_are_over_is_not_begun_again(condense: Command, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        f"{{name: tiny, base: {{source: digits}}, space: {json.dumps(SPACE)}, trials: 2}}"
    )
    of = resolve_search(tmp_path / "tiny.yaml", [f"storage={tmp_path}/searches"])
    words = ("tune", "tiny.yaml", f"storage={tmp_path}/searches")
    assert trials_over(of) is None
    with open_journal(of, resume=False) as journal:
        finish(journal, 5.0, 1, 70.0, 1e4)
        unfinished = journal.suggested({"bits_weight": 2.0, "images_per_class": 2}, "b")
        assert trials_over(of) == 1
        journal.failed(unfinished.number, "no such luck")
    before = (of.folder / EVENTS).read_bytes()
    found = condense(*words)
    assert found.code == 0, found.err
    assert found.out.splitlines()[-1].startswith("already made: search tiny, 2 of 2 trials over, nothing to do")
    assert (of.folder / EVENTS).read_bytes() == before
    assert trials_over(of.model_copy(update={"trials": 3})) == 2
    assert trials_over(of.model_copy(update={"seed": 1})) is None
