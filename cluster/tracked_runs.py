"""Opens an MLflow run together with its tracker, for one process at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cluster.mlflow_runs import open_run
from cluster.spool import Claim
from cluster.tracking import MLflowTracker

logger = logging.getLogger(__name__)


def open_tracked(uri: str, spool: Path | None, *, reopen: bool = True, **opening: Any) -> tuple[str, MLflowTracker]:
    """Opens a run and its tracker, as `open_run` does. Where another process is at work on it, this one opens another.

    Args:
        spool: as `MLflowTracker` takes it; the other process keeps it.
        reopen, opening: of `open_run`.

    Raises:
        TrackingError: the store cannot be reached or refuses.
        OutputError: the spool's folder cannot be written.
    """
    claim = None if spool is None else Claim(spool)
    alone = claim is None or claim.held
    if not alone:
        logger.warning("another process is at work on the same run: this one logs to an MLflow run of its own")
    try:
        run_id = open_run(uri, reopen=reopen and alone, **opening)
        return run_id, MLflowTracker(uri, run_id, spool=spool if alone else None, claim=claim)
    except BaseException:
        if claim is not None:
            claim.release()
        raise
