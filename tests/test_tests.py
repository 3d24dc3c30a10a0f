"""The tests' own order: they mirror the code, and no test imports a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = sorted({path.parent for path in TESTS if path.name.startswith("test_")} - {ROOT / "tests"})


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_test(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or "", *(alias.name for alias in node.names)] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not [name for name in names if re.match(r"(tests\..*)?test_", name)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_of_tests_is_named_after_a_folder_of_the_code(folder: Path) -> None:
    assert (ROOT / "condense" / folder.name).is_dir() or folder.name in ("cluster", "tuning")
    assert (folder / "__init__.py").exists()
