"""MLflow runs, and what they have logged."""

from __future__ import annotations

import uuid

from cluster.tracking import open_run
from cluster.tracking_store import connect


def new_run(uri: str, identity: str = "", **settings: object) -> str:
    return open_run(
        uri, experiment="tests", name="digits", identity=identity or uuid.uuid4().hex, params=settings or {"seed": 0}
    )


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    points = connect(uri).get_metric_history(run_id, name)
    return [(point.step, point.value) for point in points]
