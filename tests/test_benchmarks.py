"""Of the benchmarks: their list, their options, and what their pages quote."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import main, modules, summary

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PAGES = sorted(FOLDER.rglob("*.md"))
ROWS = sorted((FOLDER / "results").glob("*.jsonl"))


class ParsedError(Exception):
    """Options were read without complaint."""


def quoted() -> list[str]:
    """Every command that a page quotes, in its own block or between words."""
    texts = (re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8")) for page in PAGES)
    return sorted({found for text in texts for found in re.findall(r"python -m benchmarks ([a-z][^`\n]+)", text)})


def defines_main(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def test_list_names_every_benchmark(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    main()
    told = capsys.readouterr().out
    for name, module in modules().items():
        assert re.search(rf"^  {name} +{re.escape(summary(module))}$", told, re.MULTILINE)
    files = [*FOLDER.glob("*.py"), *FOLDER.glob("flow/*.py")]
    expected = {path for path in files if path.stem != "__main__" and defines_main(path)}
    assert {ROOT / (module.replace(".", "/") + ".py") for module in modules().values()} == expected


def test_unknown_benchmark_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit, match=r"unknown benchmark 'nothing'.*engine"):
        main()


@pytest.mark.parametrize("name", modules())
def test_help_tells_and_runs_nothing(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().out
    assert left.value.code == 0
    assert f"usage: python -m benchmarks {name} " in told
    assert summary(modules()[name]) in told


@pytest.mark.parametrize("command", quoted())
def test_quoted_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise ParsedError

    name, *options = shlex.split(command, comments=True)
    module = import_module(modules()[name])
    if not options:  # only named: its options stand elsewhere
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(ParsedError):
        module.main()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?:examples|benchmarks|condense|tests)/[\w/-]+\.(?:yaml|py|c|jsonl)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / name).exists(), name


def test_rows_that_pages_name_exist() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w-]+\.jsonl)`", table))
    for page in PAGES:
        named |= set(re.findall(r"results/([\w-]+\.jsonl)", page.read_text(encoding="utf-8")))
    assert named == {rows.name for rows in ROWS}


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.name)
def test_rows_are_json_objects(rows: Path) -> None:
    lines = rows.read_text(encoding="utf-8").splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_gpu_check_needs_neither_ray_nor_mlflow() -> None:
    blocked = "import sys; sys.modules |= dict.fromkeys(('ray', 'mlflow', 'optuna')); import benchmarks.gpu_check"
    subprocess.run([sys.executable, "-c", blocked], check=True, cwd=ROOT)
