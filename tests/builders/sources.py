"""Datasets on disk, as users have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from condense.data.decoding import encode_png


def picture(seed: int, channels: int = 3, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return encode_png(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def rows(count: int, channels: int = 3, *, start: int = 0) -> list[bytes]:
    return [png(picture(start + row, channels)) for row in range(count)]


def hub_table(encoded: Sequence[bytes | None], labels: Sequence[int | None], names: Sequence[str] | None) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": None} for data in encoded], kind),
            "label": pa.array(labels, pa.int64()),
        }
    )
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_hub(path: Path, encoded: Sequence[bytes | None], labels: Sequence[int | None], names: Any = "ab") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(hub_table(encoded, labels, names), path, row_group_size=7)
    return path
