"""The examples that ship: found by name from any folder, written by `condense init`, and each a valid config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from condense.condensation.config import RunConfig
from condense.example_files import about, example_file, example_names
from condense.settings import resolve
from tests.builders.commands import refused
from tests.conftest import QUICKSTART, ROOT, TINY, Command
from tuning.space import resolve_search


def test_the_list_names_every_example_and_says_what_it_is(condense: Command) -> None:
    listed = condense("init")
    files = {str(file.relative_to(ROOT / "examples").with_suffix("")) for file in (ROOT / "examples").rglob("*.yaml")}
    assert set(example_names()) == files > {"quickstart", "flows/rgb32"}
    for name in example_names():
        (line,) = [line for line in listed.out.splitlines() if f"│ {name} " in line]
        assert re.match(r"│ \S+ +│ [A-Z].*[\w),] +│", line)
    assert about(QUICKSTART) == (
        "The first run: scikit-learn's handwritten digits, one image per class, about a minute on two cores"
    )


def test_the_list_says_the_first_thought_of_each() -> None:
    said = about(ROOT / "examples" / "idc.yaml")
    assert said.startswith("IDC (Kim et al. 2022): each stored canvas is four training images")
    assert said.endswith("between match steps")


def test_an_example_is_written_once_and_nothing_of_the_users_is_replaced(condense: Command, tmp_path: Path) -> None:
    for name, next_command in (
        ("quickstart", "condense run quickstart.yaml"),
        ("search", "condense tune search.yaml"),
        ("flows/rgb32", "condense flow fit rgb32.yaml"),
    ):
        file = f"{Path(name).name}.yaml"
        assert condense("init", name).out == f"wrote {file}; next: {next_command}\n"
        assert (tmp_path / file).read_bytes() == (ROOT / "examples" / f"{name}.yaml").read_bytes()
    (tmp_path / "quickstart.yaml").write_text("seed: 7\n")
    refused(condense("init", "quickstart"), "quickstart.yaml exists")
    assert (tmp_path / "quickstart.yaml").read_text() == "seed: 7\n"
    refused(condense("init", "quickstar"), "'quickstar'", "quickstart", "flows/rgb32")


@pytest.mark.parametrize("name", ["quickstart", "examples/quickstart.yaml", "quickstart.yaml"])
def test_an_example_is_found_by_name_where_no_file_of_that_path_exists(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(RunConfig, name).bits_weight == 50
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("{bits_weight: 3}")
    assert resolve(RunConfig, name).bits_weight == 3


def test_a_search_by_name_takes_the_base_that_ships_and_a_written_one_that_of_its_folder(
    condense: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("{bits_weight: 3, seed: 5}")
    base = yaml.safe_load(QUICKSTART.read_text())
    assert resolve_search(Path("search")).base == base
    condense("init", "search")
    assert resolve_search(Path("search.yaml")).base == {"bits_weight": 3, "seed": 5}
    (tmp_path / "quickstart.yaml").unlink()
    assert resolve_search(Path("search.yaml")).base == base


def test_a_run_of_an_example_says_which_file_it_is(condense: Command) -> None:
    ended = condense("run", "quickstart", *TINY)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0] == f"condense run {example_file('quickstart')}"
