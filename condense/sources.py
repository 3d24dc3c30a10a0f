"""Where real data comes from (interface; being written)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from condense.settings import Settings

Split = Literal["train", "validation", "test"]


class DataConfig(Settings):
    """How real images are read and brought to one size."""

    image_size: int | None = Field(32, ge=8, le=256)  # square side; None keeps the native size
    fit: Literal["auto", "pad", "resize"] = "auto"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_source: str | None = None
    root: Path = Path("data")
    download: bool = False


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 (N, C, H, W); labels: int64 (N,); class_names: one name per label value."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


class DataSource(Protocol):
    """A dataset with three splits; the same arguments always give the same images in the same order."""

    name: str
    class_names: tuple[str, ...]

    def load(self, split: Split, classes: range | None = None) -> LabelledImages: ...


def open_source(spec: str, data: DataConfig, *, seed: int) -> DataSource:
    raise NotImplementedError
