"""The documentation: its code runs, its commands exist, its links lead somewhere, its tables are those of the code."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from condense.cli.app import app
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
KEYS = set(re.findall(r"^\| `([^`]+)` \|", CONFIGURATION, re.M))
COMMAND_LINE: Any = typer.main.get_command(app)


def commands_of(text: str) -> Iterator[list[str]]:
    """The `condense` commands of a page, in code or in sentences, as their words after `condense`."""
    joined = re.sub(r"\\\n\s*", "", text)
    for command in re.findall(r"(?:^ {4,}(?:\w+=\S+ )*|^ {4}ray job submit .*-- |`)(condense [^`\n]+)", joined, re.M):
        yield shlex.split(command, comments=True)[1:]


def check_command(words: list[str]) -> None:
    """Follows the words of a command through the command line; its options and settings must exist."""
    command, options = COMMAND_LINE, set()
    for word in words:
        options |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if word.startswith("-"):
            assert word in options | {"--help"}, f"{words}: no option {word}"
        elif hasattr(command, "commands"):
            assert word in command.commands, f"{words}: no command {word}"
            command = command.commands[word]
        elif re.match(r"[a-z_.]+=", word):
            check_key(word.partition("=")[0])
    assert not hasattr(command, "commands") or "--help" in words, f"{words}: no whole command"


def check_key(key: str) -> None:
    """A setting must be on the page of settings, which is made from the models."""
    assert key.removeprefix("base.") in KEYS, f"no setting {key}"


@pytest.mark.parametrize("page", WITH_CODE, ids=[str(page.relative_to(ROOT)) for page in WITH_CODE])
def test_the_python_of_a_page_runs_block_after_block(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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
    for words in commands_of(text):
        check_command(words)
    for target in re.findall(r"(?:^ {4,}|`)make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)=[^`]*`", page.read_text(encoding="utf-8")):
        if key != "key":  # of "key=value"
            check_key(key)


@pytest.mark.parametrize(
    "wrong",
    ["runs CONFIG", "datasets", "datasets fetch NAME", "run CONFIG --fast", "run CONFIG image.factor=2"],
)
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    (words,) = commands_of(f"Say `condense {wrong}`.")
    with pytest.raises(AssertionError):
        check_command(words)


def test_the_search_of_its_page_is_valid(tmp_path: Path) -> None:
    from tuning.space import resolve_search

    (block,) = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs" / "search.md").read_text(encoding="utf-8"), re.S | re.M
    )
    (tmp_path / "search.yaml").write_text(block)
    shutil.copy(ROOT / "examples" / "quickstart.yaml", tmp_path)
    assert resolve_search(tmp_path / "search.yaml", ()).trials == 16


def test_every_section_of_the_method_that_code_cites_is_there() -> None:
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\. ", method, re.M))
    for folder in ("condense", "cluster", "tuning", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".c", ".h"):
                cited = re.findall(r"METHOD,? section (\d+)", path.read_text(encoding="utf-8"))
                assert set(cited) <= sections, f"{path} cites {cited}"


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
    assert made == CONFIGURATION, "run `make docs`"


def test_the_configuration_page_states_the_defaults_that_a_run_has() -> None:
    from condense.condensation.config import RunConfig

    for key, default in re.findall(r"^\| `(images\.\w+)` \| [^|]* \| `([^`]*)` \|", CONFIGURATION, re.M):
        value = getattr(RunConfig().images, key.removeprefix("images."))
        assert default == str(list(value) if isinstance(value, tuple) else value), key


def test_every_setting_has_its_sentence() -> None:
    rows = [row for row in re.findall(r"^\| `.*", CONFIGURATION, re.M) if row.count(" | ") == 3]
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
