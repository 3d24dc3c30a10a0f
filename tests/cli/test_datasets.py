"""Commands over registered datasets, each from an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.commands import refused
from tests.conftest import QUICKSTART, TINY, Command

pytestmark = pytest.mark.mlflow
STORE = "tracking_uri=sqlite:///mlflow.db"


def test_a_download_makes_a_folder_of_its_own_unless_one_is_named(condense: Command, tmp_path: Path) -> None:
    settings = (setting for setting in TINY if not setting.startswith("tracking_uri"))
    made = condense("run", QUICKSTART, *settings, STORE)
    assert "download condense datasets download digits-ipc1/1\n" in made.out
    before = {path.name for path in tmp_path.iterdir()}
    content = (tmp_path / made.dataset).read_bytes()
    for words, folder in ((("digits-ipc1@best",), "digits-ipc1-1"), (("digits-ipc1", "-o", "mine"), "mine")):
        brought = condense("datasets", "download", *words)
        assert brought.out == f"{folder}\n", brought.err
        assert (tmp_path / folder / "data.parquet").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == before | {"digits-ipc1-1", "mine"}
    refused(condense("datasets", "download", "digits-ipc1/7"), "digits-ipc1")
    assert not (tmp_path / "digits-ipc1-7").exists()
