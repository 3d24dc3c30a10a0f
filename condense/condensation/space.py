"""Asks the disks for the space of a run before its work starts, as far as it is known then."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from condense.condensation.config import RunConfig
from condense.data.sources import DataSource
from condense.files import MIB, check_space
from condense.workers.storage import KEEP

SPARE = 16 * MIB  # card, figures, records that wait for MLflow, notes in the temporary directory
KEPT_BYTES = 8  # of a pixel in a checkpoint: itself and one moment, in float32


def check_space_of(config: RunConfig, source: DataSource) -> None:
    """Asks for what `space_of` says.

    Raises:
        OutputError: naming the folder whose disk has less.
    """
    check_space(space_of(config, source), "free it, or set output, storage or TMPDIR to a folder of another disk")


def space_of(config: RunConfig, source: DataSource) -> dict[Path, int]:
    """Returns the bytes that a run writes to each local folder at least: output, storage, temporary directory."""
    pixels = len(source.class_names) * config.images_per_class * math.prod(source.shape)
    needed = {config.output: SPARE + pixels, Path(tempfile.gettempdir()): SPARE}
    if "://" not in config.storage:
        storage = Path(config.storage)
        needed[storage] = needed.get(storage, 0) + SPARE + (KEEP + 1) * KEPT_BYTES * pixels  # one more while it changes
    return needed
