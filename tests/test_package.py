"""What the distribution owns: three top-level packages, and of these only what belongs to them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from condense import __version__
from condense.condensation import provenance
from condense.condensation.config import RunConfig
from condense.flow.recipe import FlowFitConfig
from condense.settings import Settings, resolve
from tests.conftest import ROOT
from tuning.space import resolve_search

NAME = "condense-service"
OWNED = {"condense", "cluster", "tuning"}
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel that is built from a copy of the sources with look-alike folders beside them."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = tracked.stdout.split("\0") if tracked.returncode == 0 else []
    files = [file for file in files if (ROOT / file).is_file()]
    if not files:
        pytest.skip("not a git checkout")
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((ROOT / file).read_bytes())
    for look_alike in ("cluster_old", "condense-copy", "condensed", "tuning2", "condense/scratch"):
        (copy / look_alike).mkdir()
        (copy / look_alike / "__init__.py").write_text("raise RuntimeError\n")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_three_packages_and_no_look_alike(wheel: list[str]) -> None:
    modules = [Path(name) for name in wheel if ".dist-info/" not in name]
    assert {path.parts[0] for path in modules} == OWNED
    assert not [path for path in modules if "scratch" in path.parts or "tests" in path.parts]


def test_the_wheel_holds_every_module_of_the_checkout(wheel: list[str]) -> None:
    expected = {str(path.relative_to(ROOT)) for layer in OWNED for path in (ROOT / layer).rglob("*.py")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert expected & set(tracked.stdout.split()) <= set(wheel)


def test_the_wheel_holds_the_yardsticks_the_examples_the_type_mark_and_the_licence(wheel: list[str]) -> None:
    yardsticks = {str(path.relative_to(ROOT)) for path in (ROOT / "condense/flow/yardsticks").glob("*.safetensors")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (yardsticks & set(tracked.stdout.split())) | {"condense/py.typed"} <= set(wheel)
    assert {f"condense/examples/{path.relative_to(ROOT / 'examples')}" for path in EXAMPLES} <= set(wheel)
    assert [name for name in wheel if name.endswith("licenses/LICENSE")]


def test_the_three_names_belong_to_this_distribution_alone() -> None:
    owners = metadata.packages_distributions()
    owned = {name for name, distributions in owners.items() if NAME in distributions}
    assert {name for name in owned if not name.startswith("__editable__")} == OWNED
    assert {name: set(owners[name]) for name in OWNED} == {name: {NAME} for name in OWNED}


def test_the_distribution_and_the_package_state_the_same_version() -> None:
    assert metadata.version(NAME) == __version__


def test_installed_inside_another_checkout_the_code_states_the_revision_of_its_image_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONDENSE_REVISION", raising=False)
    installed = tmp_path / "venv" / "provenance.py"
    installed.parent.mkdir()
    installed.write_text(Path(provenance.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (("init", "-q"), (*author, "commit", "-q", "--allow-empty", "-m", "Something else")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("installed_provenance", installed)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.git_revision() is None
    monkeypatch.setenv("CONDENSE_REVISION", "abc123")
    assert module.git_revision() == "abc123"
    assert provenance.git_revision() != "abc123", "a checkout knows better"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_resolves(path: Path) -> None:
    if path.name.startswith("search"):
        assert resolve_search(path).name
        return
    model: type[Settings] = FlowFitConfig if path.parent.name == "flows" else RunConfig
    assert isinstance(resolve(model, path), model)
