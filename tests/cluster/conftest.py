"""One SQLite store for the whole session: making one runs all of MLflow's migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.tracking_store import check_tracking


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty MLflow store in a folder whose name needs care."""
    folder: Path = tmp_path_factory.mktemp("a store 100%")
    uri = f"sqlite:///{folder}/mlflow.db"
    check_tracking(uri)
    return uri
