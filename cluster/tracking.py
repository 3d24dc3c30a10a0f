"""Logs a job to one MLflow run.

The driver opens the run and one worker logs to it. Kills and outages lose nothing.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
from torch import Tensor

from cluster.image_log import file_key, image_steps, send_picture
from cluster.mlflow_runs import is_finished, log_params, log_source, open_run, written
from cluster.spool import Claim, Record, Spool
from cluster.tracking_store import check_tracking, connect, failures, first_line, patience, redacted, refused, store_uri
from condense.errors import CondenseError, TrackingError
from condense.workers.tracking import Status, check_grid, finite_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflowTracker", "check_tracking", "is_finished", "log_source", "open_run"]

logger = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000  # MLflow's limit
ANSWER_S = 30  # a request that waits longer for its answer is sent again; one that arrived after all changes nothing
RETRY_S = (5.0, 60.0)  # first and longest pause between attempts during an outage
CLOSE_PATIENCE_S = 20.0


class MLflowTracker:
    """A Tracker that logs to one existing MLflow run.

    Every call only adds to the spool; a thread sends what waits there, at most every `interval_s`, so a slow or absent
    store delays nobody. While the store is away the spool grows; at the next success everything is replayed in order,
    and what the store already has is left out, so it arrives once. A spool that is left behind is sent by the next
    tracker with the same run and file: a worker's by the driver that pickled it. One process logs at a time, which
    calls `rest` when another is to go on. The tracker connects on first use and reads the last logged steps then.

    Args:
        tracking_uri: a server or an SQLite file.
        run_id: from `open_run`.
        spool: JSONL file of what waits; None keeps it in memory only, where a kill loses it.
        interval_s: seconds between two sendings; with infinity only `flush` and `close` send.
        claim: of the spool, released by `close`; it stays in this process.

    Raises:
        TrackingError: from a later call, when the store refuses (a deleted run); an outage is only logged.
    """

    _client: MlflowClient | None
    _logged: dict[str, int]  # last step in the store, by "metric NAME" and "image KEY"
    _retry_at: float
    _retry_s: float
    _refusal: CondenseError | None

    def __init__(
        self,
        tracking_uri: str,
        run_id: str,
        spool: str | Path | None = None,
        *,
        interval_s: float = 1.0,
        claim: Claim | None = None,
    ) -> None:
        self._claim = claim
        self.tracking_uri = store_uri(tracking_uri)
        self.run_id = run_id
        self.interval_s = interval_s
        self._spool = Spool(Path(spool) if spool is not None else None)
        self._queued: dict[str, int] = {}
        self._closed = False
        self._begin()

    def params(self, values: Mapping[str, Any]) -> None:
        self._add({"kind": "params", "values": written(values)})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        numbers = finite_metrics(values, step)
        fresh = {name: value for name, value in numbers.items() if self._ascends(f"metric {name}", step)}
        if fresh:
            self._add({"kind": "metrics", "step": step, "values": fresh})

    def images(self, key: str, grid: Tensor, step: int) -> None:
        check_grid(key, grid)
        if self._ascends(f"image {key}", step):
            encoded = io.BytesIO()
            PIL.Image.fromarray(grid.permute(1, 2, 0).cpu().contiguous().numpy()).save(encoded, format="PNG")
            png = base64.b64encode(encoded.getvalue()).decode()
            self._add({"kind": "image", "step": step, "key": key, "png": png})

    def close(self, status: Status = "FINISHED") -> None:
        """Sends what waits and ends the run; during an outage waits a little, then leaves the spool and says so."""
        if self._closed:
            return
        self._closed = True
        self.rest()
        self._disconnect()  # another process may have logged since this one did: ask again what the store has
        self._append({"kind": "close", "status": status})
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        while (waiting := self.flush(at_once=True)) and time.monotonic() < deadline:
            time.sleep(1.0)
        if waiting:
            logger.error("%d records of run %s wait in %s", waiting, self.run_id, self._spool.file or "memory")
        if self._claim is not None:
            self._claim.release()

    def rest(self) -> None:
        """Ends the thread after the request that it waits for, if any; the next call starts another."""
        if self._thread is not None:
            self._resting = True
            self._rested.set()
            self._added.set()
            self._thread.join()
            self._begin_thread()

    @property
    def waiting(self) -> int:
        """How many records are not sent yet."""
        return len(self._spool.read())

    def flush(self, *, at_once: bool = False) -> int:
        """Sends what waits; during an outage only after a pause, unless `at_once`.

        Returns:
            How many records still wait.
        """
        with self._sending:
            if not at_once and time.monotonic() < self._retry_at:
                return self.waiting
            records = self._spool.read()
            before = len(records)
            try:
                if records:
                    with patience(retries=0, timeout_s=ANSWER_S):
                        self._send(records)
            except Exception as error:
                if not isinstance(error, failures()):
                    raise
                self._pause(error)
                if refused(error):
                    raise TrackingError(
                        f"MLflow at {redacted(self.tracking_uri)} refuses run {self.run_id}: {first_line(error)}",
                        f"{len(records)} records wait in {self._spool.file or 'memory'}; was the run deleted, or is"
                        " the SQLite file on a disk that this worker does not see?",
                    ) from None
            finally:
                self._spool.drop(before - len(records))
            return len(records)

    def _keep_sending(self) -> None:
        """What the thread does."""
        while not self._resting:
            self._added.clear()
            try:
                waiting = self.flush()
            except CondenseError as error:
                self._refusal = error
                return
            if waiting:
                self._rested.wait(max(self._retry_at - time.monotonic(), self.interval_s))
            else:
                self._rested.wait(self.interval_s)
                self._added.wait()

    def __getstate__(self) -> dict[str, Any]:
        self.rest()
        clocks = ("_client", "_thread", "_added", "_rested", "_sending")  # of this process, as sockets and threads are
        return {key: value for key, value in self.__dict__.items() if key not in clocks} | {"_claim": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._sending = threading.Lock()
        self._refusal = None
        self._begin_thread()
        self._disconnect()

    def _begin_thread(self) -> None:
        self._thread: threading.Thread | None = None
        self._resting = False
        self._added, self._rested = threading.Event(), threading.Event()

    def _disconnect(self) -> None:
        self._client = None
        self._logged = {}
        self._retry_at = 0.0
        self._retry_s = RETRY_S[0]

    def _pause(self, error: Exception) -> None:
        pause = self._retry_s
        self._disconnect()  # whether the last request arrived is unknown: ask again before sending
        self._retry_at = time.monotonic() + pause
        self._retry_s = min(2 * pause, RETRY_S[1])
        logger.warning(
            "MLflow at %s cannot be reached, next attempt in %.0f s: %s",
            redacted(self.tracking_uri),
            pause,
            first_line(error),
        )

    def _ascends(self, name: str, step: int) -> bool:
        if step <= self._queued.get(name, -1):
            return False
        self._queued[name] = step
        return True

    def _add(self, record: Record) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._append(record)
        self._added.set()
        if self._thread is None and self.interval_s < math.inf:
            self._thread = threading.Thread(target=self._keep_sending, name="to-mlflow", daemon=True)
            self._thread.start()

    def _append(self, record: Record) -> None:
        self._spool.append({**record, "time": round(time.time() * 1000)})

    def _send(self, records: list[Record]) -> None:
        """Sends records in order and takes each from the list when it has arrived."""
        if self._client is None:
            client = connect(self.tracking_uri)
            self._logged = _last_steps(client, self.run_id)
            self._client = client
        while records and not self._resting:
            if records[0]["kind"] == "metrics":
                count = self._send_metrics(self._client, records)
            else:
                self._send_one(self._client, records[0], more=len(records) > 1)
                count = 1
            del records[:count]
        self._retry_s = RETRY_S[0]

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
            name = f"image {file_key(record['key'])}"
            if record["step"] > self._logged.get(name, -1):
                send_picture(client, self.run_id, record)
                self._logged[name] = record["step"]


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """Returns the last logged step of every metric and picture of a run."""
    steps: dict[str, int] = {}
    for name in client.get_run(run_id).data.metrics:
        steps[f"metric {name}"] = max(point.step for point in client.get_metric_history(run_id, name))
    for key, step in image_steps(file.path for file in client.list_artifacts(run_id, "images")):
        steps[f"image {key}"] = max(step, steps.get(f"image {key}", -1))
    return steps
