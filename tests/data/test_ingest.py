"""What a worker holds while it reads its classes from a Parquet file: its own images, whatever else the file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import ingest

LIMIT_MIB = 400  # what the process may take on top of its imports: more is refused by the system


def read_last_classes(folder: Path, layout: str, classes: int) -> dict[str, Any]:
    folder.mkdir()
    ingest.write(folder / "train.parquet", layout, classes, per_class=300)
    return ingest.in_child(folder / "train.parquet", LIMIT_MIB)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a file that holds the worker's own classes alone."""
    return read_last_classes(tmp_path_factory.mktemp("ingest") / "own", "sorted", ingest.OWN)


@pytest.mark.parametrize("layout", ingest.LAYOUTS)
def test_memory_for_four_classes_does_not_grow_with_the_file(
    tmp_path: Path, smallest: dict[str, Any], layout: str
) -> None:
    found = read_last_classes(tmp_path / "larger", layout, 15 * ingest.OWN)
    assert found["file_mib"] > 200
    assert found["working_set_mib"] == smallest["working_set_mib"]
    assert found["peak_mib"] < smallest["peak_mib"] + 80  # runs of the same file differ by 30
    if layout == "sorted":
        assert found["read_mib"] < found["file_mib"] / 2  # the row groups of other classes are left alone
