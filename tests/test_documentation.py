"""The documentation: its code runs, its commands exist, its links lead somewhere, its tables are those of the code."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from condense.cli.app import app
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the command line, as its words."""
    for name, command in group.commands.items():
        yield (*words, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))  # type: ignore[arg-type]


COMMANDS = set(commands(typer.main.get_command(app)))  # type: ignore[arg-type]


@pytest.mark.parametrize("page", WITH_CODE, ids=[str(page.relative_to(ROOT)) for page in WITH_CODE])
def test_the_python_of_a_page_runs_block_after_block(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    # A process of its own: what a page registers is not there for other tests.
    program = "\n".join(blocks)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, text=True
    )
    assert ended.returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:^ {4,}|`|\$ )condense ((?:[a-z]+ ?)+)", text, re.M)
    for words in (tuple(name.split()) for name in named):
        assert any(words[:length] in COMMANDS for length in (1, 2)), f"condense {' '.join(words)}"
    for target in re.findall(r"(?:^ {4,}|`)make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_and_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    if page.name == "CHANGELOG.md":
        return
    for name in re.findall(r"`((?:condense|cluster|tuning|tests|examples|benchmarks|docs|deploy)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_configuration_page_is_made_from_the_models() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate_configuration.py"))["page"]()
    assert made == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), "run `make docs`"


def test_every_setting_has_its_sentence() -> None:
    rows = re.findall(r"^\| `.*", (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 90
    assert all(row.rstrip(" |").endswith(".") for row in rows)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 135


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", tmp_path / "html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "html" / "index.html").exists()
    assert "condense.measure" in (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
