"""How real images are read: the settings under `data`."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field

from condense.data.decoding import Fit
from condense.settings import Settings

log = logging.getLogger(__name__)


class DataConfig(Settings):
    """How real images are read and brought to one size."""

    image_size: int | None = Field(32, ge=8, le=256)  # square side; None keeps the native size
    fit: Fit = "auto"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_source: str | None = None  # parquet: or folder: of the test split; None takes the one stored beside train
    image_column: str | None = None  # of a Parquet file, where it cannot be told from the types
    label_column: str | None = None
    root: Path = Path("data")  # where torchvision's datasets are
    download: bool = False
