"""The condensed dataset's file: exact round trip, every reader a user has, and damage that is told by name."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.errors import DatasetError, NonFiniteError, OutputError
from condense.synthetic.dataset import CondensedDataset, CondensedImages, content_digest, read_dataset, write_dataset

NAMES = ("cat", "dog", "T-shirt/top")
PROVENANCE = {"seed": 3, "normalisation": {"mean": [0.5], "std": [0.25]}, "value_range": [0, 1]}


def made(channels: int = 3, *, per_class: int = 2, soft: bool = False) -> CondensedDataset:
    generator = torch.Generator().manual_seed(channels)
    count = per_class * len(NAMES)
    return CondensedDataset(
        images=torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator),
        labels=torch.arange(len(NAMES)).repeat_interleave(per_class),
        class_names=NAMES,
        bits=torch.rand(count, dtype=torch.float64, generator=generator),
        bits_per_dim=torch.rand(count, dtype=torch.float64, generator=generator),
        soft_labels=torch.rand(count, len(NAMES), generator=generator) if soft else None,
        provenance=PROVENANCE,
    )


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, CondensedDataset]:
    dataset = made(request.param, soft=True)
    return write_dataset(tmp_path / "out" / "set.parquet", dataset), dataset


def pixels(encoded: bytes) -> torch.Tensor:
    array = np.array(Image.open(io.BytesIO(encoded)))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def test_every_value_comes_back_exactly(written: tuple[Path, CondensedDataset]) -> None:
    path, dataset = written
    read = read_dataset(path)
    for name in ("images", "labels", "bits", "bits_per_dim", "soft_labels"):
        assert torch.equal(getattr(read, name), getattr(dataset, name)), name
        assert getattr(read, name).dtype == getattr(dataset, name).dtype, name
    assert read.class_names == NAMES
    assert PROVENANCE.items() <= read.provenance.items()
    digest = content_digest(dataset.images, dataset.labels, NAMES, dataset.soft_labels)
    assert read.provenance["content_digest"] == digest


def test_a_read_dataset_writes_the_same_file(written: tuple[Path, CondensedDataset]) -> None:
    path, _ = written
    again = write_dataset(path.with_name("again.parquet"), read_dataset(path))
    assert again.read_bytes() == path.read_bytes()


def test_soft_labels_are_absent_where_none_were_learned(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", made())
    assert read_dataset(path).soft_labels is None
    assert "soft_label" not in pq.read_schema(path).names


def test_bits_are_null_where_no_flow_was_used(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", dataclasses.replace(made(), bits=None, bits_per_dim=None))
    read = read_dataset(path)
    assert read.bits is None
    assert read.bits_per_dim is None
    assert pq.read_table(path).column("bits").null_count == 6


def test_pyarrow_sees_the_declared_columns_and_metadata(written: tuple[Path, CondensedDataset]) -> None:
    path, dataset = written
    table = pq.read_table(path)
    assert table.column_names == ["image", "label", "label_name", "bits", "bits_per_dim", "soft_label"]
    assert all(field.nullable for field in table.schema)
    assert json.loads(table.schema.metadata[b"condense"])["seed"] == 3
    for row, image in enumerate(table.column("image").to_pylist()):
        assert torch.equal(pixels(image["bytes"]), dataset.images[row])
    assert table.column("label_name").to_pylist() == [NAMES[label] for label in dataset.labels]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_pandas_reads_images_and_labels(written: tuple[Path, CondensedDataset]) -> None:
    path, dataset = written
    frame = pd.read_parquet(path)
    assert frame["label"].tolist() == dataset.labels.tolist()
    assert torch.equal(torch.stack([pixels(image["bytes"]) for image in frame["image"]]), dataset.images)


def test_polars_reads_images_and_labels(written: tuple[Path, CondensedDataset]) -> None:
    path, dataset = written
    frame = pl.read_parquet(path)
    assert frame["bits"].to_list() == dataset.bits.tolist()
    encoded = frame["image"].struct.field("bytes").to_list()
    assert torch.equal(torch.stack([pixels(image) for image in encoded]), dataset.images)


def test_duckdb_queries_bits_by_class_and_reads_images(written: tuple[Path, CondensedDataset]) -> None:
    path, dataset = written
    with duckdb.connect() as connection:
        means = connection.execute(
            "select label_name, avg(bits) from read_parquet(?) group by label, label_name order by label", [str(path)]
        ).fetchall()
        encoded = connection.execute("select image.bytes from read_parquet(?)", [str(path)]).fetchall()
    assert [name for name, _ in means] == list(NAMES)
    assert [mean for _, mean in means] == pytest.approx(dataset.bits.view(3, 2).mean(1).tolist())
    assert torch.equal(torch.stack([pixels(image) for (image,) in encoded]), dataset.images)


def test_hugging_face_datasets_shows_pictures_and_class_names(
    written: tuple[Path, CondensedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    path, dataset = written
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["label"].names == list(NAMES)
    assert loaded["label"][:] == dataset.labels.tolist()
    shown = [np.array(image).reshape(8, 8, -1).transpose(2, 0, 1) for image in loaded["image"]]
    assert torch.equal(torch.from_numpy(np.stack(shown)), dataset.images)
    assert torch.equal(torch.tensor(loaded["soft_label"][:]), dataset.soft_labels)


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.ray
def test_ray_data_reads_images_and_labels(tmp_path: Path, cluster: Any) -> None:
    dataset = made()
    path = write_dataset(tmp_path / "set.parquet", dataset)
    rows = cluster.data.read_parquet(str(path)).take_all()
    assert [row["label"] for row in rows] == dataset.labels.tolist()
    assert torch.equal(torch.stack([pixels(row["image"]["bytes"]) for row in rows]), dataset.images)


def test_a_data_loader_gives_float_batches_of_the_stored_levels(written: tuple[Path, CondensedDataset]) -> None:
    path, dataset = written
    images, labels = next(iter(DataLoader(CondensedImages(path), batch_size=6)))
    assert images.dtype == torch.float32
    assert torch.equal(images.mul(255).round().to(torch.uint8), dataset.images)
    assert torch.equal(labels, dataset.soft_labels)
    assert CondensedImages(path).targets == dataset.labels.tolist()
    hard = write_dataset(path.with_name("hard.parquet"), dataclasses.replace(dataset, soft_labels=None))
    assert torch.equal(next(iter(DataLoader(CondensedImages(hard), batch_size=6)))[1], dataset.labels)


def test_normalised_images_use_the_files_own_mean_and_deviation(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", made(1))
    plain, normalised = CondensedImages(path), CondensedImages(path, normalise=True)
    torch.testing.assert_close(normalised[4][0], (plain[4][0] - 0.5) / 0.25)


def test_normalising_a_file_that_states_no_normalisation_is_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", dataclasses.replace(made(), provenance={}))
    with pytest.raises(DatasetError, match="states no normalisation"):
        CondensedImages(path, normalise=True)


def test_a_transform_gets_pictures_as_torchvision_gives_them(written: tuple[Path, CondensedDataset]) -> None:
    from torchvision.transforms.functional import pil_to_tensor

    path, dataset = written
    images = CondensedImages(path, transform=pil_to_tensor)
    assert images.classes == list(NAMES)
    assert torch.equal(torch.stack([images[row][0] for row in range(len(images))]), dataset.images)


def test_a_condensed_file_is_itself_a_source(tmp_path: Path) -> None:
    dataset = made(per_class=4)
    path = write_dataset(tmp_path / "set.parquet", dataset)
    source = open_source(f"parquet:{path}", DataConfig(image_size=None), seed=0)
    assert source.class_names == NAMES
    assert sum(len(source.load(split).labels) for split in ("train", "validation", "test")) == 12


def test_the_digest_depends_on_all_that_a_learner_sees_and_on_no_writer() -> None:
    dataset = made()
    images, labels = dataset.images, dataset.labels
    reference = content_digest(images, labels, NAMES)
    assert reference == content_digest(images.flip(3).flip(3), labels.to(torch.int32), list(NAMES))
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    assert content_digest(changed, labels, NAMES) != reference
    assert content_digest(images, labels.flip(0), NAMES) != reference
    assert content_digest(images, labels, ("dog", "cat", "T-shirt/top")) != reference
    assert content_digest(images.view(6, 3, 4, 16), labels, NAMES) != reference
    assert content_digest(images, labels, NAMES, torch.zeros(6, 3)) != reference


def rewrite(path: Path, change: Any) -> None:
    """The file with its table changed, its metadata kept."""
    table = pq.ParquetFile(path).read()
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def with_images(table: pa.Table, images: list[Any]) -> pa.Table:
    return table.set_column(0, table.schema.field("image"), pa.array(images, table.schema.field("image").type))


def first_image(encoded: bytes | None) -> Any:
    def change(table: pa.Table) -> pa.Table:
        images = table.column("image").to_pylist()
        return with_images(table, [{"bytes": encoded, "path": None}, *images[1:]])

    return change


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.parquet does not exist"):
        read_dataset(tmp_path / "none.parquet")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_told_by_name(tmp_path: Path, keep: float) -> None:
    path = write_dataset(tmp_path / "set.parquet", made())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DatasetError, match=r"set\.parquet: not a readable Parquet file"):
        read_dataset(path)


def test_a_parquet_file_of_something_else_is_no_condensed_dataset(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DatasetError, match="is not a condensed dataset") as caught:
        read_dataset(path)
    assert f"source=parquet:{path}" in caught.value.remedy


def test_a_changed_pixel_does_not_pass_the_digest(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", made())
    rewrite(path, lambda table: with_images(table, table.column("image").to_pylist()[::-1]))
    with pytest.raises(DatasetError, match="content digest"):
        read_dataset(path)


def test_a_damaged_image_names_its_row(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", made())
    rewrite(path, first_image(b"\x89PNG nonsense"))
    with pytest.raises(DatasetError, match=r"set\.parquet, row 0: not a readable image"):
        read_dataset(path)


@pytest.mark.parametrize(
    "change",
    [
        first_image(None),
        lambda table: table.drop_columns(["bits"]),
        lambda table: table.set_column(1, "label", pa.array([None] * 6, pa.int64())),
        lambda table: table.slice(0, 0),
    ],
)
def test_a_file_whose_columns_were_changed_is_refused_by_name(tmp_path: Path, change: Any) -> None:
    path = write_dataset(tmp_path / "set.parquet", made())
    rewrite(path, change)
    with pytest.raises(DatasetError, match=r"set\.parquet"):
        read_dataset(path)


@pytest.mark.parametrize("stored", [b"{", b"[]", b"{}", b'{"format": 99}'])
def test_a_damaged_or_newer_provenance_is_refused_by_name(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"condense": stored}), path)
    with pytest.raises(DatasetError, match=r"set\.parquet: .*(damaged|format 99)"):
        read_dataset(path)


@pytest.mark.parametrize("name", ["bits", "bits_per_dim"])
def test_bits_that_are_not_finite_are_never_written(tmp_path: Path, name: str) -> None:
    dataset = made()
    bits = dataset.bits.clone()
    bits[4] = torch.nan
    with pytest.raises(NonFiniteError, match=f"{name} of image 4"):
        write_dataset(tmp_path / "set.parquet", dataclasses.replace(dataset, **{name: bits}))
    assert not list(tmp_path.iterdir())


def test_a_label_without_a_class_name_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="label 2 of image 4"):
        write_dataset(tmp_path / "set.parquet", dataclasses.replace(made(), class_names=NAMES[:2]))


def test_writing_replaces_a_file_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.parquet", made(1))
    write_dataset(path, made(3))
    assert read_dataset(path).images.shape == (6, 3, 8, 8)
    assert os.listdir(tmp_path) == ["set.parquet"]


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_dataset(tmp_path / "file" / "set.parquet", made())
    (tmp_path / "set.parquet").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_dataset(tmp_path / "set.parquet", made())
    assert sorted(os.listdir(tmp_path)) == ["file", "set.parquet"]
