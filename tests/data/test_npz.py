"""NumPy archives with MedMNIST's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.errors import SourceError

NATIVE = DataConfig(image_size=None)


def archive(path: Path, *, channels: int = 3, column: bool = True, **changed: Any) -> str:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 20), ("val", 6), ("test", 8)):
        images = random.integers(0, 256, (count, 9, 9, channels), dtype=np.uint8)
        arrays[f"{split}_images"] = images[..., 0] if channels == 1 else images
        labels = (np.arange(count) % 2).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None] if column else labels
    arrays.update(changed)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{path}"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("column", [True, False])
def test_each_split_holds_what_was_stored(tmp_path: Path, channels: int, column: bool) -> None:
    path = tmp_path / "blood.npz"
    source = open_source(archive(path, channels=channels, column=column), NATIVE, seed=0)
    stored = np.load(path)
    for split, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        loaded = source.load(split)  # type: ignore[arg-type]
        images = stored[f"{key}_images"].reshape(-1, 9, 9, channels).transpose(0, 3, 1, 2)
        assert np.array_equal(loaded.images.numpy(), images)
        assert np.array_equal(loaded.labels.numpy(), stored[f"{key}_labels"].ravel())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_labels": None}, "no train_labels"),
        ({"train_images": np.zeros((20, 9, 9, 9), np.uint8)}, r"uint8 \(20, 9, 9, 9\)"),
        ({"train_images": np.zeros((20, 9, 9))}, "float64"),
        ({"train_labels": np.zeros((20, 14), np.uint8)}, r"labels are uint8 \(20, 14\)"),
        ({"test_labels": np.full(8, 5)}, "row 0: label 5"),
        ({"train_labels": np.array([{}] * 20)}, "not a readable NumPy archive"),
    ],
)
def test_an_archive_of_another_kind_is_one_error(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_source(archive(tmp_path / "blood.npz", **changed), NATIVE, seed=0)


def test_a_file_that_is_no_archive_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"nothing")
    for name in ("x.npz", "absent.npz"):
        with pytest.raises(SourceError, match=f"{name}: not a readable NumPy archive"):
            open_source(f"npz:{tmp_path / name}", NATIVE, seed=0)
