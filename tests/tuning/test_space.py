"""A search's YAML: what is filled in, and one clear error for all that makes no sense, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from condense.errors import ConfigError
from tests.conftest import ROOT, Command
from tuning.space import SearchConfig, resolve_search

BASE = {"source": "digits", "outer_steps": 4, "tracking_uri": "none"}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "search.yaml"
    values = {"name": "tiny", "base": BASE, "space": {"bits_weight": {"log_uniform": [1, 100]}}, **changes}
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_base_may_be_a_file_beside_the_search_and_is_overridden_by_keys(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE))
    search = resolve_search(written(tmp_path, base="run.yaml"), ["base.outer_steps=7", "trials=3"])
    assert search.trials == 3
    run = search.run_config({"bits_weight": 5.0, "images.learning_rate": 0.2}, workers=0)
    assert (run.outer_steps, run.bits_weight, run.images.learning_rate, run.workers) == (7, 5.0, 0.2, 0)
    assert run.name == "tiny"
    assert not run.evaluation.test
    assert resolve_search(ROOT / "examples" / "search.yaml").space["bits_weight"].bounds == (1, 500)


def test_whole_numbers_are_told_from_others(tmp_path: Path) -> None:
    search = resolve_search(written(tmp_path))
    assert search.is_integer("images_per_class")
    assert search.is_integer("matching.steps")
    assert not search.is_integer("bits_weight")


def test_budgets_and_places_are_not_part_of_what_a_search_is(tmp_path: Path) -> None:
    def decisive(**changes: Any) -> str:
        return json.dumps(resolve_search(written(tmp_path, **changes)).decisive(), sort_keys=True)

    same = decisive()
    assert decisive(trials=99, time_budget_s=5, concurrent=1, storage="there") == same
    assert decisive(base={**BASE, "workers": 0, "output": "there"}) == same
    assert decisive(seed=1) != same
    assert decisive(base={**BASE, "outer_steps": 5}) != same


WRONG = {
    "space.bits_wieght": {"space": {"bits_wieght": {"uniform": [0, 1]}}},
    "space.network": {"space": {"network": {"choice": ["mlp"]}}},
    "space.evaluation.recipe": {"space": {"evaluation.recipe": {"choice": ["dc", "dsa"]}}},
    "space.source": {"space": {"source": {"choice": ["digits"]}}},
    "space.workers": {"space": {"workers": {"choice": [0]}}},
    "'space'": {"space": {}},
    "the lower bound 5 is above the upper bound 1": {"space": {"bits_weight": {"uniform": [5, 1]}}},
    "must be above 0": {"space": {"bits_weight": {"log_uniform": [0, 1]}}},
    "choice needs values": {"space": {"images_per_class": {"choice": []}}},
    "each of them once": {"space": {"images_per_class": {"choice": [1, 1]}}},
    "give one of": {"space": {"images_per_class": {"choice": [1], "uniform": [1, 2]}}},
    "space.matching.distance": {"space": {"matching.distance": {"uniform": [0, 1]}}},
    "'manhattan' does not fit": {"space": {"matching.distance": {"choice": ["l1", "manhattan"]}}},
    "space.images_per_class": {"space": {"images_per_class": {"uniform": [0, 5]}}},
    "needs kilobits": {"mode": "best-under-budget"},
    "takes no accuracy": {"accuracy": 80},
    "'trials'": {"trials": 0},
    "'mode'": {"mode": "cheapest"},
    "unknown key 'trails'": {"trails": 3},
    "base: unknown key 'outer_step'": {"base": {**BASE, "outer_step": 3}},
    "there.yaml does not exist": {"base": "there.yaml"},
    "a search's name": {"name": "a/b"},
    "'space.bits_weight': a grid has no ranges": {"sampler": "grid"},
    "'warm_start'": {"warm_start": {}, "space": {"images_per_class": {"choice": [1, 2]}}},
    "warm_start.steps": {"warm_start": {"steps": 0}},
    "'time_budget_s'": {"base": {**BASE, "time_budget_s": 60}},
    "base.tracking_uri is none": {},
}


@pytest.mark.parametrize("named", WRONG)
def test_what_makes_no_sense_is_one_error_that_names_it(named: str, condense: Command, tmp_path: Path) -> None:
    ended = condense("tune", written(tmp_path, **WRONG[named]))
    assert ended.code == 2
    assert named in " ".join(ended.err.split())
    assert not (tmp_path / "searches" / "tiny").exists()


def test_what_the_data_cannot_give_is_named_before_anything_starts(condense: Command, tmp_path: Path) -> None:
    space = {"images_per_class": {"choice": [1, 9000]}}
    store = "base.tracking_uri=sqlite:///" + str(tmp_path / "mlflow.db")
    ended = condense("tune", written(tmp_path, space=space), store)
    assert (ended.code, "space.images_per_class" in ended.err) == (2, True)
    ended = condense("tune", written(tmp_path), store, "base.data.image_size=16")
    assert (ended.code, "no shipped flow" in ended.err) == (2, True)
    without = written(tmp_path, space={"images_per_class": {"choice": [1, 2]}})
    ended = condense("tune", without, store, "base.data.image_size=16")
    assert (ended.code, "set base.data.image_size or base.flow" in ended.err) == (2, True)
    without = written(tmp_path, space={"bits_target": {"uniform": [1, 2]}})
    ended = condense("tune", without, store)
    assert (ended.code, "set early_stopping: null" in ended.err) == (2, True)
    (tmp_path / "file").write_text("in the way")
    ended = condense("tune", written(tmp_path), store, "storage=file")
    assert (ended.code, "set storage=FOLDER" in ended.err) == (2, True)
    ended = condense("tune", written(tmp_path), store, "--resume")
    assert (ended.code, "no search 'tiny'" in ended.err) == (2, True)
    assert not (tmp_path / "searches" / "tiny").exists()


def test_settings_that_exclude_each_other_are_refused_for_a_trial() -> None:
    search = SearchConfig.model_validate({"name": "tiny", "base": BASE, "space": {"bits_weight": {"choice": [1]}}})
    with pytest.raises(ConfigError, match="the run with"):
        search.run_config({"bits_weight": -1})
