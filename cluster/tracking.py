"""The Tracker on MLflow: one run, opened by the driver, logged to by one worker, surviving kills and outages."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
from torch import Tensor

from cluster.opening import log_params, log_source, open_run, written
from cluster.spool import Record, Spool
from cluster.store import check_tracking, connect, failures, first_line, patience, refused, shown, store_uri
from condense.errors import TrackingError
from condense.tracking import Status, check_grid, finite_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflowTracker", "check_tracking", "log_source", "open_run"]

logger = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000  # MLflow's limit
RETRY_S = (5.0, 60.0)  # first and longest pause between attempts during an outage
CLOSE_PATIENCE_S = 20.0


class MLflowTracker:
    """A Tracker that logs to one existing MLflow run.

    Every call is first written to the spool, then sent: at most every `interval_s`, with each picture, and at close.
    While the store is away the spool grows and training goes on; at the next success everything is replayed in order,
    and what the store already has is left out, so it arrives once. A spool that is left behind is sent by the next
    tracker with the same run and file: a worker's by the driver that pickled it. One process logs at a time. The
    tracker connects on first use and reads the last logged steps then.

    Args:
        tracking_uri: a server or an SQLite file.
        run_id: from `open_run`.
        spool: JSONL file of what waits; None keeps it in memory only, where a kill loses it.
        interval_s: seconds between two sendings of metrics; 0 sends each call.

    Raises:
        TrackingError: from any call, when the store refuses (a deleted run); an outage is only logged.
    """

    _client: MlflowClient | None
    _logged: dict[str, int]  # last step in the store, by "metric NAME" and "image KEY"
    _retry_at: float
    _retry_s: float
    _sent_at: float

    def __init__(
        self, tracking_uri: str, run_id: str, spool: str | Path | None = None, *, interval_s: float = 1.0
    ) -> None:
        self.tracking_uri = store_uri(tracking_uri)
        self.run_id = run_id
        self.interval_s = interval_s
        self._spool = Spool(Path(spool) if spool is not None else None)
        self._known = self.waiting
        self._queued: dict[str, int] = {}
        self._closed = False
        self._disconnect()

    def params(self, values: Mapping[str, Any]) -> None:
        self._add({"kind": "params", "values": written(values)})
        self.flush()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        numbers = finite_metrics(values, step)
        fresh = {name: value for name, value in numbers.items() if self._ascends(f"metric {name}", step)}
        if fresh:
            self._add({"kind": "metrics", "step": step, "values": fresh})
            if time.monotonic() - self._sent_at >= self.interval_s:
                self.flush()

    def images(self, key: str, grid: Tensor, step: int) -> None:
        check_grid(key, grid)
        if self._ascends(f"image {key}", step):
            encoded = io.BytesIO()
            PIL.Image.fromarray(grid.permute(1, 2, 0).cpu().contiguous().numpy()).save(encoded, format="PNG")
            png = base64.b64encode(encoded.getvalue()).decode()
            self._add({"kind": "image", "step": step, "key": key, "png": png})
            self.flush()

    def close(self, status: Status = "FINISHED") -> None:
        """Sends what waits and ends the run; during an outage waits a little, then leaves the spool and says so."""
        if self._closed:
            return
        self._closed = True
        self._add({"kind": "close", "status": status})
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        while self.flush(at_once=True) and time.monotonic() < deadline:
            time.sleep(1.0)
        if self._known:
            logger.error("%d records of run %s wait in %s", self._known, self.run_id, self._spool.file or "memory")

    @property
    def waiting(self) -> int:
        """How many records are not sent yet."""
        return len(self._spool.read())

    def flush(self, *, at_once: bool = False) -> int:
        """Sends what waits; during an outage only after a pause, unless `at_once`.

        Returns:
            How many records still wait.
        """
        if not at_once and time.monotonic() < self._retry_at:
            return self._known
        records = self._spool.read()
        if len(records) != self._known:
            self._client = None  # another process left some: ask again what the store has
        if not records:
            self._known = 0
            return 0
        try:
            with patience(retries=1, timeout_s=10):
                self._send(records)
        except Exception as error:
            if not isinstance(error, failures()):
                raise
            self._pause(error)
            if refused(error):
                raise TrackingError(
                    f"MLflow at {shown(self.tracking_uri)} refuses run {self.run_id}: {first_line(error)}",
                    f"{len(records)} records wait in {self._spool.file or 'memory'}; was the run deleted, or is"
                    " the SQLite file on a disk that this worker does not see?",
                ) from None
        finally:
            self._spool.keep_only(records)
            self._known = len(records)
        return self._known

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {**self.__dict__, "_client": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._known = self.waiting
        self._disconnect()  # clocks and sockets of another process mean nothing here

    def _disconnect(self) -> None:
        self._client = None
        self._logged = {}
        self._retry_at = 0.0
        self._retry_s = RETRY_S[0]
        self._sent_at = -math.inf

    def _pause(self, error: Exception) -> None:
        pause = self._retry_s
        self._disconnect()  # whether the last request arrived is unknown: ask again before sending
        self._retry_at = time.monotonic() + pause
        self._retry_s = min(2 * pause, RETRY_S[1])
        logger.warning(
            "MLflow at %s cannot be reached, next attempt in %.0f s: %s",
            shown(self.tracking_uri),
            pause,
            first_line(error),
        )

    def _ascends(self, name: str, step: int) -> bool:
        if step <= self._queued.get(name, -1):
            return False
        self._queued[name] = step
        return True

    def _add(self, record: Record) -> None:
        self._spool.append({**record, "time": round(time.time() * 1000)})
        self._known += 1

    def _send(self, records: list[Record]) -> None:
        """Sends records in order and takes each from the list when it has arrived."""
        if self._client is None:
            client = connect(self.tracking_uri)
            self._logged = _last_steps(client, self.run_id)
            self._client = client
        while records:
            if records[0]["kind"] == "metrics":
                count = self._send_metrics(self._client, records)
            else:
                self._send_one(self._client, records[0], more=len(records) > 1)
                count = 1
            del records[:count]
        self._retry_s = RETRY_S[0]
        self._sent_at = time.monotonic()

    def _send_metrics(self, client: MlflowClient, records: list[Record]) -> int:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        taken: dict[str, int] = {}
        count = 0
        for record in records:
            if record["kind"] != "metrics" or len(batch) >= METRICS_PER_BATCH:
                break
            for name, value in record["values"].items():
                last = taken.get(name, self._logged.get(f"metric {name}", -1))
                if record["step"] > last:
                    batch.append(Metric(name, value, record["time"], record["step"]))
                    taken[name] = record["step"]
            count += 1
        for start in range(0, len(batch), METRICS_PER_BATCH):
            client.log_batch(self.run_id, metrics=batch[start : start + METRICS_PER_BATCH])
        self._logged.update({f"metric {name}": step for name, step in taken.items()})
        return count

    def _send_one(self, client: MlflowClient, record: Record, *, more: bool) -> None:
        if record["kind"] == "params":
            log_params(client, self.run_id, record["values"])
        elif record["kind"] == "close":
            if more:  # of a run that was resumed since
                return
            client.set_terminated(self.run_id, record["status"], end_time=record["time"])
        else:
            name = f"image {_file_key(record['key'])}"
            if record["step"] > self._logged.get(name, -1):
                picture = PIL.Image.open(io.BytesIO(base64.b64decode(record["png"])))
                client.log_image(self.run_id, picture, key=record["key"], step=record["step"], timestamp=record["time"])
                self._logged[name] = record["step"]


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The last logged step of every metric and picture of a run."""
    steps: dict[str, int] = {}
    for name in client.get_run(run_id).data.metrics:
        steps[f"metric {name}"] = max(point.step for point in client.get_metric_history(run_id, name))
    for key, step in image_steps(file.path for file in client.list_artifacts(run_id, "images")):
        steps[f"image {key}"] = max(step, steps.get(f"image {key}", -1))
    return steps


def image_steps(paths: Iterable[str]) -> list[tuple[str, int]]:
    """(key, step) of the pictures among artifact paths; the thumbnail is written last, so it shows a whole one."""
    names = (re.fullmatch(r"images/(.+)\+step\+(\d+)\+timestamp\+.*\.webp", path) for path in paths)
    return [(name[1], int(name[2])) for name in names if name]


def _file_key(key: str) -> str:
    """A picture's key as MLflow spells it in file names."""
    return key.replace("/", "~")
