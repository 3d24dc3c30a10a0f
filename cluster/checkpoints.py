"""Keeps the checkpoints of one job on many workers.

Worker 0 writes. All workers go on from the same step, and all see every failure.
"""

from __future__ import annotations

import torch

from condense.errors import CheckpointError, CondenseError, ConfigError, OutputError
from condense.workers.checkpoints import Checkpoint
from condense.workers.collective import Collective, raise_together
from condense.workers.storage import StoredCheckpoints


class SharedCheckpoints(StoredCheckpoints):
    """Every worker makes one and calls its methods in the same order; none is left waiting for one that failed.

    Args:
        storage: see `Storage`; a path is absolute.
        run: the run's name.
        note: what the driver left there with `mark`.
        collective: the workers.
        device: of the tensors that the collective carries.

    Raises:
        ConfigError: a worker does not see the driver's note: its node does not share the storage.
    """

    def __init__(self, storage: str, run: str, note: str, collective: Collective, device: torch.device) -> None:
        super().__init__(storage, run)
        self.collective, self.device = collective, device
        failure: CondenseError | None = None
        try:
            if not self.marked(note):
                failure = ConfigError(
                    f"storage={storage} on the node of worker {collective.rank} is not that of the driver",
                    "set storage to a folder that all nodes share (such as NFS) or to s3://BUCKET/FOLDER",
                )
        except CheckpointError as error:
            failure = error
        raise_together(collective, failure, device)

    def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
        """Has worker 0 write, and raises everywhere what goes wrong there."""
        failure: CondenseError | None = None
        try:
            super().save(checkpoint, metrics)
        except (OutputError, CheckpointError) as error:
            failure = error
        raise_together(self.collective, failure, self.device)

    def latest(self) -> Checkpoint | None:
        """Returns the checkpoint that worker 0 finds.

        A storage such as NFS may show another worker an older listing.
        """
        found: Checkpoint | None = None
        failure: CondenseError | None = None
        try:
            found = super().latest() if self.collective.rank == 0 else None
        except CheckpointError as error:
            failure = error
        raise_together(self.collective, failure, self.device)
        step = torch.tensor([0 if found is None else found.step], device=self.device)
        chosen = int(self.collective.sum_(step))
        if chosen == 0:
            return None
        try:
            found = found or self.at(chosen)
        except CheckpointError as error:
            failure = error
        raise_together(self.collective, failure, self.device)
        return found
