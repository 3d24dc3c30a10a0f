"""Shards of one split that were written by different programs are read as one; what cannot be read is one error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.errors import SourceError
from tests.builders.sources import hub_table, rows

NATIVE = DataConfig(image_size=None)
LABELS = [0, 1] * 6


def shards(folder: Path, *tables: pa.Table) -> str:
    folder.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"train-{number}.parquet")
    return f"parquet:{folder}"


def first() -> pa.Table:
    return hub_table(rows(12), LABELS, None)


def second() -> pa.Table:
    return hub_table(rows(12, start=50), LABELS, None)


def with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def plain_bytes(table: pa.Table) -> pa.Table:
    return with_column(table, "image", pa.array([row["bytes"] for row in table["image"].to_pylist()], pa.binary()))


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "narrower integers": lambda table: with_column(table, "label", table["label"].cast(pa.int32())),
    "unsigned integers": lambda table: with_column(table, "label", table["label"].cast(pa.uint64())),
    "coded labels": lambda table: with_column(table, "label", table["label"].dictionary_encode()),
    "plain bytes": plain_bytes,
    "coded bytes": lambda table: with_column(
        plain_bytes(table), "image", plain_bytes(table)["image"].dictionary_encode()
    ),
    "another order": lambda table: table.select(["label", "image"]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("changed_first", [False, True])
def test_shards_that_differ_in_storage_alone_give_the_same_images(
    tmp_path: Path, change: str, changed_first: bool
) -> None:
    change_it = CHANGES[change]
    same = open_source(shards(tmp_path / "same", first(), second()), NATIVE, seed=0).load("train")
    tables = (change_it(first()), second()) if changed_first else (first(), change_it(second()))
    loaded = open_source(shards(tmp_path / "differ", *tables), NATIVE, seed=0).load("train")
    assert torch.equal(loaded.images, same.images)
    assert torch.equal(loaded.labels, same.labels)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("label", pa.array(["a", "b"] * 6), r"train-1\.parquet: column 'label' is string, but int64"),
        ("label", pa.array([2**63] * 12, pa.uint64()), r"train-1\.parquet: column 'label': Integer value"),
        ("image", pa.array([1.0] * 12), r"train-1\.parquet: column 'image' is double"),
    ],
)
def test_a_shard_of_another_kind_is_named(tmp_path: Path, column: str, values: pa.Array, said: str) -> None:
    spec = shards(tmp_path / "differ", first(), with_column(second(), column, values))
    with pytest.raises(SourceError, match=said):
        open_source(spec, NATIVE, seed=0)


def test_a_repository_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"hf://datasets/nobody/nothing cannot be reached: .*\n.*network"):
        open_source("parquet:hf://datasets/nobody/nothing", NATIVE, seed=0)
