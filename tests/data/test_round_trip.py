"""Small random datasets, written in every layout with every kind of label, are read back equal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.data.split_names import SPLITS, Split
from tests.builders.sources import hub_table, picture, png

NAMES = ("ant", "bee", "cat")
WORDS = {"train": ("train", "Training"), "validation": ("val", "Dev"), "test": ("test", "TESTING", "eval")}


def declared(table: pa.Table, labels: Sequence[int]) -> pa.Table:
    return hub_table([row["bytes"] for row in table.column("image").to_pylist()], labels, NAMES)


def named(table: pa.Table, labels: Sequence[int]) -> pa.Table:
    return table.append_column("label_name", pa.array([NAMES[label] for label in labels]))


def words(table: pa.Table, labels: Sequence[int]) -> pa.Table:
    return table.set_column(1, "label", pa.array([NAMES[label] for label in labels]))


def categories(table: pa.Table, labels: Sequence[int]) -> pa.Table:
    return table.set_column(1, "label", pa.array([NAMES[label] for label in labels]).dictionary_encode())


LABELS: tuple[Callable[[pa.Table, Sequence[int]], pa.Table], ...] = (declared, named, words, categories)
LAYOUTS = ("file", "shards", "folders of files", "folder of images")


def write(
    folder: Path,
    layout: str,
    kind: Callable[[pa.Table, Sequence[int]], pa.Table],
    word: str,
    labels: Sequence[int],
    pixels: Sequence[np.ndarray],
) -> None:
    encoded = [png(image) for image in pixels]
    if layout == "folder of images":
        for row, (label, data) in enumerate(zip(labels, encoded, strict=True)):
            path = folder / word / NAMES[label] / f"{row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return
    table = kind(hub_table(encoded, labels, None), labels)
    half = len(labels) // 2
    paths = {
        "file": [(f"pets_{word}.parquet", table)],
        "shards": [(f"{word}-0000{n}-of-00002.parquet", table.slice(n * half, half)) for n in (0, 1)],
        "folders of files": [(f"data/{word}/x.parquet", table)],
    }[layout]
    for name, part in paths:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, folder / name, row_group_size=3)


@settings(deadline=None, max_examples=60)
@given(
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(LABELS),
    channels=st.sampled_from((1, 3)),
    chosen=st.fixed_dictionaries({split: st.sampled_from(said) for split, said in WORDS.items()}),
    seed=st.integers(0, 2**16),
)
def test_a_dataset_is_read_back_as_it_was_written(
    layout: str,
    kind: Callable[[pa.Table, Sequence[int]], pa.Table],
    channels: int,
    chosen: dict[str, str],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as made:
        expected: dict[Split, tuple[list[int], list[np.ndarray]]] = {}
        for number, split in enumerate(SPLITS):
            # Every class is in every split and in each half of it, which is a shard.
            halves = [rng.permutation([*range(len(NAMES)), *rng.integers(0, len(NAMES), 2)]) for _ in range(2)]
            labels = np.concatenate(halves).tolist()
            pixels = [picture(seed + 1000 * number + row, channels, 4) for row in range(len(labels))]
            write(Path(made), layout, kind, chosen[split], labels, pixels)
            expected[split] = (labels, pixels)
        form = "folder" if layout == "folder of images" else "parquet"
        source = open_source(f"{form}:{made}", DataConfig(image_size=None), seed=0)
        assert source.class_names == NAMES
        for split, (labels, pixels) in expected.items():
            loaded = source.load(split)
            order = np.argsort(labels, kind="stable") if form == "folder" else np.arange(len(labels))
            assert loaded.labels.tolist() == [labels[row] for row in order]
            stacked = np.stack([pixels[row] for row in order]).transpose(0, 3, 1, 2)
            assert np.array_equal(loaded.images.numpy(), stacked)
