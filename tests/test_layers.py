"""tuning -> cluster -> condense, and the folders of condense in lines: imports go down, and condense runs alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from condense.synthetic.dataset import read_dataset
from tests.conftest import QUICKSTART, ROOT, TINY

# These start whichever layer a command or a caller asks for.
FRONT_DOORS = ("condense.cli", "condense.api", "condense.lookup")

# The folders and files of condense, from what a person types to what everything stands on. A file imports from its own
# folder and from the lines below its own; folders of one line never import each other.
LINES = (
    {"cli"},
    {"api"},
    {"lookup"},
    {"reports"},
    {"condensation", "simplification", "explanation"},
    {"matching"},
    {"synthetic", "learners", "flow"},
    {"data"},
    {"workers"},
    {"kernels"},
    {"image_grid", "files", "settings", "seeding"},
    {"pixels", "errors", "example_files"},
)
LINE_OF = {name: line for line, names in enumerate(LINES) for name in names}
FORBIDDEN = {
    "condense": ("cluster", "tuning", "ray", "mlflow", "optuna"),
    "cluster": ("tuning", "ray.tune", "optuna"),
    "tuning": (),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for layer in FORBIDDEN for path in sorted((ROOT / layer).rglob("*.py"))}


def imports(path: Path, *, deferred: bool) -> Iterator[str]:
    """Dotted names that a file imports; with `deferred`, also inside functions and for types alone."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which layer it reaches"
            # `from ray import tune` imports ray.tune: every name may be a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif deferred or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            todo.extend(ast.iter_child_nodes(node))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_to_the_right(module: str) -> None:
    forbidden = FORBIDDEN[module.partition(".")[0]]
    front_door = any(within(module, door) for door in FRONT_DOORS)
    names = imports(MODULES[module], deferred=not front_door)
    assert not [name for name in names if any(within(name, package) for package in forbidden)]


def imported_modules(module: str) -> set[str]:
    """Modules of this project that importing `module` needs: the longest known prefix of each name."""
    needed = set()
    front_door = any(within(module, door) for door in FRONT_DOORS) or module == "condense"
    for name in imports(MODULES[module], deferred=not front_door):
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        needed |= {next((prefix for prefix in prefixes if prefix in MODULES), module)}
    return needed - {module}


def room(module: str) -> str:
    """The folder or file of condense that a module is in; empty for condense itself."""
    return module.removeprefix("condense").removeprefix(".").partition(".")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) and within(module, "condense")])
def test_a_file_of_condense_imports_from_its_own_folder_and_from_the_lines_below(module: str) -> None:
    own = room(module)
    others = {room(name) for name in imports(MODULES[module], deferred=True) if within(name, "condense")} - {own}
    known = {name for name in others if name in LINE_OF}  # `from condense import __version__` names no room
    assert not [name for name in known if LINE_OF[name] <= LINE_OF[own]]


def test_every_folder_and_file_of_condense_is_in_a_line() -> None:
    assert {room(module) for module in MODULES if within(module, "condense")} - {""} <= LINE_OF.keys()


def test_files_import_each_other_in_one_direction() -> None:
    graph = {module: imported_modules(module) for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


ALONE = """
import sys
for absent in ("ray", "mlflow", "optuna", "cluster", "tuning"):
    sys.modules[absent] = None  # importing it, or anything in it, raises ModuleNotFoundError; find_spec finds nothing
import importlib
for name in sys.argv.pop(1).split(","):
    importlib.import_module(name)
from condense.cli.app import main
main()
"""


def test_condense_imports_and_runs_where_ray_and_mlflow_are_not_installed(tmp_path: Path) -> None:
    modules = [module for module in MODULES if within(module, "condense")]
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, ",".join(modules), "run", QUICKSTART, *TINY],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    (path,) = (tmp_path / "condensed").rglob("*.parquet")
    assert len(read_dataset(path).images) == 10
    assert sorted(file.name for file in path.parent.iterdir()) == ["README.md", "data.parquet", "preview.png"]
    assert f"dataset  {path.relative_to(tmp_path)}" in ended.stdout.splitlines()
