"""Defines how real images are read: the settings under `data`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from condense.data.decoding import Fit
from condense.data.split_names import Split
from condense.settings import Settings


class DataConfig(Settings):
    """How real images are read and brought to one size."""

    image_size: int | None = Field(32, ge=8, le=256)
    """Side of the square that images are brought to; null keeps their size."""
    fit: Fit = "auto"
    """How images are brought to that side. pad centres them in zeros; resize scales the shorter side and crops the
    centre; auto pads images whose sides are both between 3/4 of it and it (28 to 32), and resizes all others.
    """
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the train split that becomes the validation split, where none is stored."""
    split_files: dict[Split, str] | None = None
    """The files of each split in a folder, where their names do not say it: {train: "a-*.parquet", test: "b-*"} for
    parquet:, {train: FOLDER, test: FOLDER} for folder:.
    """
    config: str | None = None
    """The configuration to take of a folder with several: a folder in it, or what file names begin with."""
    drop_empty_classes: bool = False
    """Leaves out classes without a train image, be they declared by metadata or gaps between integer labels."""
    test_source: str | None = None
    """parquet: or folder: of the test split; null takes the one that is stored beside train."""
    image_column: str | None = None
    """Column of the images of a Parquet file, where it cannot be told from the types."""
    label_column: str | None = None
    """Column of the labels of a Parquet file."""
    root: Path = Path("data")
    """The folder of torchvision's datasets."""
    download: bool = False
    """Whether torchvision may download them."""
