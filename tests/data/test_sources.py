"""Real data: every form of source, its splits, its framing, and bad input told by file and row."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from condense.data import decoding as condense_images
from condense.data.config import DataConfig
from condense.data.decoding import Frame, decode, stack
from condense.data.digests import class_digests, combine_digests
from condense.data.readers import TORCHVISION_SETS
from condense.data.sources import DataSource, LabelledImages, open_source
from condense.data.splits import carve, check_class_sizes
from condense.errors import SourceError
from tests.builders.sources import hub_table, picture, png, rows, write_hub

NATIVE = DataConfig(image_size=None)
SPLITS = ("train", "validation", "test")


def write_folder(path: Path, counts: dict[str, int], *, start: int = 0) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for row in range(count):
            (path / name / f"{row:03d}.png").write_bytes(png(picture(start + 100 * number + row)))
    return path


def write_idx(root: Path, folder: str, prefix: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    raw = root / folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 0x803, *pixels.shape) + pixels.tobytes())
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
        struct.pack(">ii", 0x801, len(labels)) + labels.astype("u1").tobytes()
    )


def write_mnist(root: Path, folder: str = "MNIST", prefixes: tuple[str, str] = ("train", "t10k")) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = np.arange(60) % (47 if folder == "EMNIST" else 10)
    if folder == "EMNIST":
        pixels, labels = np.tile(pixels, (2, 1, 1)), np.arange(120) % 47
    for prefix in prefixes:
        write_idx(root, folder, prefix, pixels, labels)
    return pixels


def problem(spec: str, data: DataConfig = NATIVE, split: Any = "train") -> str:
    with pytest.raises(SourceError) as caught:
        open_source(spec, data, seed=0).load(split)
    return str(caught.value)


def load_all(source: DataSource, classes: range | None = None) -> list[LabelledImages]:
    return [source.load(split, classes) for split in SPLITS]


class SourceContract:
    """What holds for every source."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        raise NotImplementedError

    @pytest.fixture
    def source(self, opened: tuple[str, DataConfig]) -> DataSource:
        return open_source(*opened, seed=0)

    def test_images_are_uint8_of_the_stated_shape_and_labels_int64(self, source: DataSource) -> None:
        for split in SPLITS:
            loaded = source.load(split)
            assert loaded.images.dtype == torch.uint8
            assert loaded.images.shape == (len(loaded.labels), *source.shape)
            assert loaded.labels.dtype == torch.int64
            assert loaded.class_names == source.class_names
            assert len(loaded.labels) > 0
        assert source.channels == source.shape[0] in (1, 3)

    def test_the_order_is_the_same_every_time(self, source: DataSource, opened: tuple[str, DataConfig]) -> None:
        other = open_source(*opened, seed=0)
        for split in SPLITS:
            one, two = source.load(split), other.load(split)
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)

    def test_class_slices_hold_the_images_of_the_whole(self, source: DataSource) -> None:
        half = len(source.class_names) // 2
        for split in SPLITS:
            whole = source.load(split)
            for classes in (range(half), range(half, len(source.class_names))):
                part = source.load(split, classes)
                chosen = torch.tensor([int(label) in classes for label in whole.labels])
                assert torch.equal(part.images, whole.images[chosen])
                assert torch.equal(part.labels, whole.labels[chosen])
                assert part.class_names == whole.class_names

    def test_digests_of_slices_combine_to_that_of_the_whole(self, source: DataSource) -> None:
        half = len(source.class_names) // 2
        parts = {
            **class_digests(source.load("train", range(half, len(source.class_names)))),
            **class_digests(source.load("train", range(half))),
        }
        assert combine_digests(parts) == combine_digests(class_digests(source.load("train")))

    def test_class_counts_are_those_of_train(self, source: DataSource) -> None:
        counts = torch.bincount(source.load("train").labels, minlength=len(source.class_names))
        assert source.class_counts == tuple(counts.tolist())

    def test_every_class_is_in_train_and_validation(self, source: DataSource) -> None:
        for split in ("train", "validation"):
            assert set(source.load(split).labels.tolist()) == set(range(len(source.class_names)))

    def test_another_seed_draws_another_validation_split_and_the_same_test(
        self, source: DataSource, opened: tuple[str, DataConfig]
    ) -> None:
        spec, data = opened
        others = [open_source(spec, data, seed=seed) for seed in (1, 2, 3)]
        assert any(
            not torch.equal(source.load("validation").images, other.load("validation").images) for other in others
        )
        assert all(torch.equal(source.load("test").images, other.load("test").images) for other in others)

    def test_the_description_is_plain_and_says_where_test_is_from(self, source: DataSource) -> None:
        described = source.description()
        assert json.loads(json.dumps(described)) == described
        assert described["test"]
        assert described["name"] == source.name != ""

    def test_a_source_pickles(self, source: DataSource) -> None:
        twin = pickle.loads(pickle.dumps(source))
        assert torch.equal(twin.load("test").images, source.load("test").images)


class TestDigits(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        return "digits", DataConfig(image_size=8)

    def test_levels_are_spread_over_the_byte(self, source: DataSource) -> None:
        from sklearn.datasets import load_digits

        images = source.load("train").images
        assert images.min() == 0
        assert images.max() == 255
        assert set(images.unique().tolist()) <= {round(level * 255 / 16) for level in range(17)}
        assert sum(len(source.load(split).labels) for split in SPLITS) == len(load_digits().target)

    def test_a_fifth_is_the_test_split(self, source: DataSource) -> None:
        assert len(source.load("test").labels) == pytest.approx(1797 / 5, abs=5)


class TestHubParquet(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        write_hub(tmp_path / "pets_train.parquet", rows(30), [row % 2 for row in range(30)])
        write_hub(tmp_path / "pets_test.parquet", rows(10, start=100), [row % 2 for row in range(10)])
        return f"parquet:{tmp_path / 'pets_train.parquet'}", NATIVE

    def test_names_come_from_the_metadata_and_test_from_the_file_beside_it(self, source: DataSource) -> None:
        assert source.class_names == ("a", "b")
        assert source.name == "pets"
        assert str(source.description()["test"]).endswith("pets_test.parquet")
        expected = np.stack([picture(100 + row) for row in range(10)]).transpose(0, 3, 1, 2)
        assert np.array_equal(source.load("test").images.numpy(), expected)


class TestParquetFolder(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        folder = tmp_path / "pets" / "data"
        for shard in range(3):
            labels = [row % 3 for row in range(12)]
            write_hub(folder / f"train-{shard:05d}-of-00003.parquet", rows(12, 1, start=12 * shard), labels, "abc")
        write_hub(folder / "test-00000-of-00001.parquet", rows(6, 1, start=90), [0, 1, 2] * 2, "abc")
        return f"parquet:file://{tmp_path / 'pets'}", DataConfig(image_size=10)

    def test_shards_are_read_in_name_order(self, source: DataSource) -> None:
        assert sum(len(source.load(split).labels) for split in ("train", "validation")) == 36
        assert len(source.load("test").labels) == 6
        assert source.shape == (1, 10, 10)


class TestStoredValidation(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        write_hub(tmp_path / "pets" / "train.parquet", rows(12), [0, 1] * 6)
        write_hub(tmp_path / "pets" / "val.parquet", rows(4, start=50), [1, 0] * 2)
        return f"parquet:{tmp_path / 'pets'}", NATIVE

    def test_it_is_the_validation_split_and_train_is_whole(self, source: DataSource) -> None:
        expected = np.stack([picture(50 + row) for row in range(4)]).transpose(0, 3, 1, 2)
        assert np.array_equal(source.load("validation").images.numpy(), expected)
        assert source.load("validation").labels.tolist() == [1, 0, 1, 0]
        assert [source.count(split) for split in SPLITS] == [10, 4, 2]  # test is carved
        assert source.description()["validation"].endswith("val.parquet")

    def test_another_seed_draws_another_validation_split_and_the_same_test(
        self, source: DataSource, opened: tuple[str, DataConfig]
    ) -> None:
        other = open_source(*opened, seed=1)
        assert all(torch.equal(source.load(split).images, other.load(split).images) for split in SPLITS)


class TestPlainParquet(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        table = {"picture": rows(40), "label": [("dog", "cat")[row % 2] for row in range(40)]}
        pl.DataFrame(table).write_parquet(tmp_path / "plain.parquet")
        return f"parquet:{tmp_path / 'plain.parquet'}", NATIVE

    def test_words_are_classes_in_sorted_order_and_test_is_carved(self, source: DataSource) -> None:
        assert source.class_names == ("cat", "dog")
        assert "carved" in source.description()["test"]
        assert len(source.load("test").labels) == 4


class TestFolder(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        path = write_folder(tmp_path / "pets", {"cat": 12, "dog": 10, "emu": 11})
        (path / "cat" / "notes.txt").write_text("not an image")
        (path / ".cache").mkdir()
        return f"folder:{path}", NATIVE

    def test_classes_are_the_sorted_folders(self, source: DataSource) -> None:
        assert source.class_names == ("cat", "dog", "emu")


class TestSplitFolder(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        write_folder(tmp_path / "pets" / "train", {"cat": 12, "dog": 10})
        write_folder(tmp_path / "pets" / "test", {"dog": 3}, start=500)
        return f"folder:{tmp_path / 'pets'}", NATIVE

    def test_test_labels_are_those_of_train(self, source: DataSource) -> None:
        assert source.load("test").labels.tolist() == [1, 1, 1]


class TestTorchvisionIdx(SourceContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[str, DataConfig]:
        write_mnist(tmp_path)
        return "MNIST", DataConfig(root=tmp_path)

    def test_images_are_centred_in_zeros(self, source: DataSource, tmp_path: Path) -> None:
        test = source.load("test").images
        assert np.array_equal(test[:, 0, 2:30, 2:30].numpy(), write_mnist(tmp_path))
        assert int(test.long().sum()) == int(test[:, :, 2:30, 2:30].long().sum())


@pytest.mark.parametrize(
    ("spec", "folder"), [("fashion-mnist", "FashionMNIST"), ("Fashion_MNIST", "FashionMNIST"), ("KMNIST", "KMNIST")]
)
def test_idx_datasets_are_known_by_name_in_any_spelling(tmp_path: Path, spec: str, folder: str) -> None:
    write_mnist(tmp_path, folder)
    source = open_source(spec, DataConfig(root=tmp_path), seed=0)
    assert source.shape == (1, 32, 32)
    assert len(source.class_names) == 10


def test_emnist_letters_are_turned_upright(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path, "EMNIST", ("emnist-balanced-train", "emnist-balanced-test"))
    source = open_source("emnist-balanced", DataConfig(root=tmp_path, image_size=None), seed=0)
    assert len(source.class_names) == 47
    assert np.array_equal(source.load("test").images[:, 0].numpy(), pixels.transpose(0, 2, 1))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar_batch(path: Path, values: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(values))
    return md5(path)


# torchvision checks the published sums of these files; the tests below give it those of tiny files of the same form.
def test_cifar10_is_read_from_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    data = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    batch = {"data": data, "labels": [row % 10 for row in range(20)]}
    sums = {name: cifar_batch(folder / name, batch) for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]}
    meta = cifar_batch(folder / "batches.meta", {"label_names": [f"class {label}" for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    source = open_source("cifar-10", DataConfig(root=tmp_path), seed=0)
    assert source.class_names[3] == "class 3"
    assert np.array_equal(source.load("test").images.numpy(), data.reshape(20, 3, 32, 32))
    assert sum(len(source.load(split).labels) for split in ("train", "validation")) == 100


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    data = np.random.default_rng(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    batch = {"data": data, "fine_labels": [row % 100 for row in range(200)], "coarse_labels": [0] * 200}
    for name in ("train", "test"):
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, cifar_batch(folder / name, batch)]])
    meta = cifar_batch(folder / "meta", {"fine_label_names": [f"class {label}" for label in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": meta})
    source = open_source("cifar100", DataConfig(root=tmp_path), seed=0)
    assert len(source.class_names) == 100
    assert source.load("test").labels.tolist() == batch["fine_labels"]


def test_svhn_is_read_from_its_mat_files_with_ten_as_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 30), dtype=np.uint8)
    labels = (np.arange(30) % 10 + 1).astype(np.uint8)[:, None]
    sums = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels, "y": labels})
        sums[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", sums)
    test = open_source("svhn", DataConfig(root=tmp_path), seed=0).load("test")
    assert test.labels.tolist() == [label % 10 for label in labels[:, 0]]
    assert np.array_equal(test.images.numpy(), pixels.transpose(3, 2, 0, 1))


def test_stl10_is_read_from_its_binary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
    for name in ("train_X", "test_X", "unlabeled_X"):
        (folder / f"{name}.bin").write_bytes(pixels.tobytes())
    for name in ("train_y", "test_y"):
        (folder / f"{name}.bin").write_bytes((np.arange(20) % 10 + 1).astype("u1").tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class {label}" for label in range(10)))
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(STL10, name, [[file, md5(folder / file)] for file, _ in getattr(STL10, name)])
    native = open_source("stl10", DataConfig(root=tmp_path, image_size=None), seed=0)
    assert native.class_names[9] == "class 9"
    assert np.array_equal(native.load("test").images.numpy(), pixels.transpose(0, 1, 3, 2))
    assert open_source("stl10", DataConfig(root=tmp_path), seed=0).load("test").images.shape == (20, 3, 32, 32)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_a_missing_torchvision_dataset_says_which_files_go_where(tmp_path: Path, name: str) -> None:
    said = problem(name, DataConfig(root=tmp_path / "data"))
    assert all(file in said for file in TORCHVISION_SETS[name].files)
    assert str(tmp_path / "data") in said
    assert "data.download=true" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x00\x00\x08\x03\x00\x00\x00\x05", b"nonsense of some length"])
def test_a_damaged_idx_file_is_told_by_dataset(tmp_path: Path, data: bytes) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(data)
    assert "mnist" in problem("mnist", DataConfig(root=tmp_path))


def test_a_damaged_cifar_file_is_never_unpickled(tmp_path: Path) -> None:
    for file in TORCHVISION_SETS["cifar10"].files:
        cifar_batch(tmp_path / file, Explosive())
    assert "damaged" in problem("cifar10", DataConfig(root=tmp_path))


class Explosive:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('unpickled')",)


# Splits


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_a_carved_split_is_stratified_and_leaves_every_class_something(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    taken = carve(labels, fraction, classes=len(counts), seed=seed, purpose="validation-split")
    for label, count in enumerate(counts):
        assert taken[labels == label].sum() == min(max(round(fraction * count), 1), count - 1)


def test_splits_of_one_file_are_disjoint_and_together_the_file(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "pets.parquet", rows(50), [row % 2 for row in range(50)])
    source = open_source(f"parquet:{path}", NATIVE, seed=0)
    parts = torch.cat([source.load(split).images for split in SPLITS])
    assert len(torch.unique(parts.view(50, -1), dim=0)) == 50


def test_no_row_of_the_test_split_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    train = write_hub(tmp_path / "train.parquet", rows(20), [row % 2 for row in range(20)])
    write_hub(tmp_path / "test.parquet", [b"not an image"] * 2, [0, None])
    source = open_source(f"parquet:{train}", NATIVE, seed=0)
    source.load("train")
    source.load("validation")
    with pytest.raises(SourceError, match=r"test\.parquet, row 1: the label is null"):
        source.load("test")


def test_a_damaged_test_file_is_told_before_the_run(tmp_path: Path) -> None:
    train = write_hub(tmp_path / "train.parquet", rows(20), [row % 2 for row in range(20)])
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"test\.parquet: not a readable Parquet file"):
        open_source(f"parquet:{train}", NATIVE, seed=0)


@pytest.mark.parametrize("form", ["file", "folder of files", "folder of images"])
def test_a_test_source_may_be_given(tmp_path: Path, form: str) -> None:
    train = write_hub(tmp_path / "train.parquet", rows(20), [row % 2 for row in range(20)])
    write_hub(tmp_path / "test.parquet", [b"not this one"], [0])
    other = write_hub(tmp_path / "other" / "held-out.parquet", rows(4, start=60), [0, 1, 0, 1])
    pictures = write_folder(tmp_path / "pictures", {"a": 2, "b": 2})
    given = {"file": f"parquet:{other}", "folder of files": f"parquet:{other.parent}"}.get(form, f"folder:{pictures}")
    data = DataConfig(image_size=None, test_source=given)
    source = open_source(f"parquet:{train}", data, seed=0)
    assert sorted(source.load("test").labels.tolist()) == [0, 0, 1, 1]
    assert given.partition(":")[2] in source.description()["test"]
    assert sum(len(source.load(split).labels) for split in ("train", "validation")) == 20


def test_a_test_source_of_other_classes_is_refused(tmp_path: Path) -> None:
    train = write_hub(tmp_path / "train.parquet", rows(20), [row % 2 for row in range(20)], "ab")
    other = write_hub(tmp_path / "other.parquet", rows(2), [0, 1], "bc")
    said = problem(f"parquet:{train}", DataConfig(test_source=f"parquet:{other}"))
    assert "['b', 'c'] are not those of train, ['a', 'b']" in said
    pictures = write_folder(tmp_path / "pictures", {"c": 1})
    assert "'c' is not a class" in problem(f"parquet:{train}", DataConfig(test_source=f"folder:{pictures}"))
    assert "digits" in problem(f"parquet:{train}", DataConfig(test_source="digits"))


def test_a_class_too_small_to_split_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets", {"cat": 9, "dog": 2})
    assert "class 'dog' has 2 images" in problem(f"folder:{path}")
    path = write_hub(tmp_path / "pets.parquet", rows(9), [0] * 9, ("cat", "dog"))
    assert "class 'dog' has 0 images" in problem(f"parquet:{path}")


def test_a_class_smaller_than_images_per_class_is_named() -> None:
    check_class_sizes((5, 4), 4, ("cat", "dog"))
    with pytest.raises(SourceError, match="class 'dog' has 4 train images, fewer than images_per_class=5"):
        check_class_sizes((5, 4), 5, ("cat", "dog"))


def test_digests_depend_on_pixels_names_labels_and_shape() -> None:
    data = LabelledImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    reference = combine_digests(class_digests(data))
    changed = data.images.clone()
    changed[0, 0, 0, 0] = 1
    for other in (
        dataclasses.replace(data, images=changed),
        dataclasses.replace(data, labels=torch.tensor([0, 0])),
        dataclasses.replace(data, class_names=("a", "c")),
        dataclasses.replace(data, images=data.images.view(2, 1, 2, 8)),
    ):
        assert combine_digests(class_digests(other)) != reference


# Parquet


def test_only_the_batches_of_the_wanted_classes_are_decoded(tmp_path: Path) -> None:
    encoded = [*rows(14), b"not an image", *rows(13)]
    path = write_hub(tmp_path / "pets.parquet", encoded, [0] * 14 + [1] * 14)
    write_hub(tmp_path / "test.parquet", rows(2), [0, 1])
    source = open_source(f"parquet:{path}", DataConfig(test_source=f"parquet:{tmp_path / 'test.parquet'}"), seed=0)
    assert len(source.load("train", range(1)).labels) == 13
    with pytest.raises(SourceError, match=r"pets\.parquet, row 14: not a readable image"):
        load_all(source, range(1, 2))


def test_rows_are_named_within_their_own_file(tmp_path: Path) -> None:
    write_hub(tmp_path / "train-0.parquet", rows(10), [0, 1] * 5)
    write_hub(tmp_path / "train-1.parquet", rows(10), [0, 1, 2] + [0] * 7)
    assert "train-1.parquet, row 2: label 2 is out of range, expected 0 to 1" in problem(f"parquet:{tmp_path}")


def test_files_of_two_datasets_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_hub(tmp_path / "a.parquet", rows(10), [0, 1] * 5, "ab")
    write_hub(tmp_path / "b.parquet", rows(10), [0, 1] * 5, "ac")
    assert "b.parquet: its classes are not those of" in problem(f"parquet:{tmp_path}")


def test_integer_labels_without_metadata_are_named_by_the_name_column(tmp_path: Path) -> None:
    table = hub_table(rows(20), [row % 2 for row in range(20)], None)
    named = table.append_column("label_name", pa.array(["cat", "dog"] * 10))
    pq.write_table(named, tmp_path / "named.parquet")
    pq.write_table(table, tmp_path / "bare.parquet")
    assert open_source(f"parquet:{tmp_path / 'named.parquet'}", NATIVE, seed=0).class_names == ("cat", "dog")
    assert open_source(f"parquet:{tmp_path / 'bare.parquet'}", NATIVE, seed=0).class_names == ("0", "1")
    pq.write_table(table.append_column("label_name", pa.array(["cat", "dog"] * 9 + ["dog", "dog"])), tmp_path / "x")
    assert "row 18: label 0 is named 'dog' here and 'cat' before" in problem(f"parquet:{tmp_path / 'x'}")


def test_categories_of_pandas_are_classes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": rows(20), "label": pd.Categorical(["dog", "cat"] * 10)})
    frame.to_parquet(tmp_path / "pets.parquet")
    source = open_source(f"parquet:{tmp_path / 'pets.parquet'}", NATIVE, seed=0)
    assert source.class_names == ("cat", "dog")
    assert sorted(set(source.load("train").labels.tolist())) == [0, 1]


def test_columns_of_other_names_can_be_given(tmp_path: Path) -> None:
    table = pa.table({"left": rows(20), "right": rows(20, start=20), "kind": [0, 1] * 10})
    pq.write_table(table, tmp_path / "two.parquet")
    spec = f"parquet:{tmp_path / 'two.parquet'}"
    said = problem(spec)
    assert "more than one column of image bytes" in said
    assert "data.image_column" in said
    assert "no column of labels; its columns are left (binary), right (binary), kind (int64)" in problem(
        spec, DataConfig(image_column="right")
    )
    source = open_source(spec, DataConfig(image_size=None, image_column="right", label_column="kind"), seed=0)
    loaded = torch.cat([part.images for part in load_all(source, range(1))])
    expected = np.stack([picture(20 + row) for row in range(0, 20, 2)]).transpose(0, 3, 1, 2)
    assert sorted(loaded.flatten(1).tolist()) == sorted(expected.reshape(10, -1).tolist())
    assert source.shape == (3, 8, 8)


def test_a_file_without_images_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text.parquet")
    said = problem(f"parquet:{tmp_path / 'text.parquet'}")
    assert "no column of image bytes; its columns are text (string), label (int64)" in said


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 5] * 4, "row 2: label 5 is out of range, expected 0 to 1"),
        ([0, -1, 1] * 4, "row 1: label -1 is below 0, which marks a row without a label; 4 rows"),
        ([0, 1, None] * 4, "row 2: the label is null"),
    ],
)
def test_a_bad_label_names_its_row(tmp_path: Path, labels: list[int | None], expected: str) -> None:
    path = write_hub(tmp_path / "pets.parquet", rows(12), labels)
    assert f"pets.parquet, {expected}" in problem(f"parquet:{path}")


@pytest.mark.parametrize(
    ("label", "said"),
    [(5, "label 5, but no row has label 2"), (10**12, f"label {10**12}, but no row"), (-2, "label -2 is below 0")],
)
def test_undeclared_labels_must_count_from_zero_without_a_gap(tmp_path: Path, label: int, said: str) -> None:
    path = write_hub(tmp_path / "pets.parquet", rows(12), [0, 1, label] * 4, None)
    assert f"pets.parquet, row 2: {said}" in problem(f"parquet:{path}")


def test_a_null_image_names_its_row(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "pets.parquet", [*rows(11), None], [0, 1] * 6)
    source = open_source(f"parquet:{path}", NATIVE, seed=0)
    with pytest.raises(SourceError, match=r"row 11: no image bytes"):
        load_all(source)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a parquet file at all"])
def test_a_file_that_is_no_parquet_is_told_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "pets.parquet").write_bytes(data)
    assert "pets.parquet: not a readable Parquet file" in problem(f"parquet:{tmp_path / 'pets.parquet'}")


def test_missing_and_empty_places_are_told_by_name(tmp_path: Path) -> None:
    assert "none.parquet does not exist" in problem(f"parquet:{tmp_path / 'none.parquet'}")
    assert "holds no Parquet file" in problem(f"parquet:{tmp_path}")
    assert "none does not exist" in problem(f"folder:{tmp_path / 'none'}")
    assert "holds no folders" in problem(f"folder:{tmp_path}")
    assert "cannot be reached" in problem("parquet:nosuchscheme://bucket/key")
    (tmp_path / "cat").mkdir()
    assert "cat holds no images" in problem(f"folder:{tmp_path}")
    path = write_hub(tmp_path / "empty.parquet", [], [])
    assert "empty.parquet holds no rows" in problem(f"parquet:{path}")


@pytest.mark.parametrize(("spec", "near"), [("minst", "mnist"), ("cifar-1O", "cifar10"), ("digit", "digits")])
def test_an_unknown_dataset_names_the_nearest_and_lists_the_forms(spec: str, near: str) -> None:
    said = problem(spec)
    assert f"unknown dataset '{spec}'" in said
    assert near in said
    assert "folder:PATH" in said


# Pictures


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_decodes_to_the_pixels_that_were_encoded(channels: int) -> None:
    assert np.array_equal(decode(png(picture(0, channels)), "x"), picture(0, channels))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
def test_the_usual_formats_are_read(kind: str) -> None:
    assert decode(saved(Image.new("RGB", (6, 5), "red"), kind), "x").shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (saved(Image.new("RGBA", (4, 4))), "transparency"),
        (saved(Image.new("LA", (4, 4))), "transparency"),
        (saved(Image.new("P", (4, 4)), transparency=0), "transparency"),
        (saved(Image.new("RGB", (64, 64)))[:60], "not a readable image"),
        (saved(Image.new("RGB", (64, 64)), "JPEG")[:-40], "not a readable image"),
        (b"", "not a readable image"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
    ],
)
def test_a_picture_that_cannot_be_used_names_its_row(data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=f"file, row 7: .*{said}"):
        decode(data, "file, row 7")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [5000, 11000, 30000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(side: int) -> None:
    bomb = io.BytesIO()
    bomb.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(bomb, b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    PngImagePlugin.putchunk(bomb, b"IDAT", b"")
    with pytest.raises(SourceError, match="file, row 7"):
        decode(bomb.getvalue(), "file, row 7")


def test_a_picture_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condense_images, "MAX_BYTES", 100)
    with pytest.raises(SourceError, match="bytes; at most 100"):
        decode(png(picture(0, size=16)), "x")


def test_images_of_other_channels_or_sizes_name_their_row(tmp_path: Path) -> None:
    grey = write_hub(tmp_path / "grey.parquet", [*rows(9), png(picture(0, 1))], [0, 1] * 5)
    source = open_source(f"parquet:{grey}", NATIVE, seed=0)
    with pytest.raises(SourceError, match=r"grey\.parquet, row 9: 1 channel, but the first training image has 3"):
        load_all(source)
    path = write_folder(tmp_path / "pets", {"cat": 9, "dog": 9})
    (path / "dog" / "004.png").write_bytes(png(picture(0, size=9)))
    source = open_source(f"folder:{path}", NATIVE, seed=0)
    with pytest.raises(SourceError, match=r"004\.png: 9x9 pixels, but .* 8x8\n.*data\.image_size"):
        load_all(source)
    assert open_source(f"folder:{path}", DataConfig(image_size=8), seed=0).load("train").images.shape[2:] == (8, 8)


@pytest.mark.parametrize("size", [24, 28, 31, 32])
def test_auto_centres_images_of_nearly_the_size_in_zeros(size: int) -> None:
    framed = Frame(32, "auto").apply(picture(0, 1, size), "x")
    top = (32 - size) // 2
    assert np.array_equal(framed[top : top + size, top : top + size], picture(0, 1, size))
    assert framed.astype(int).sum() == picture(0, 1, size).astype(int).sum()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (23, 32), (33, 32), (96, 40)])
def test_auto_resizes_other_images(height: int, width: int) -> None:
    bright = np.full((height, width, 3), 200, dtype=np.uint8)
    assert np.array_equal(Frame(32, "auto").apply(bright, "x"), np.full((32, 32, 3), 200))


def test_resizing_keeps_the_centre_square() -> None:
    wide = np.zeros((16, 48, 1), dtype=np.uint8)
    wide[:, 16:32] = picture(0, 1, 16)
    assert np.array_equal(Frame(16, "resize").apply(wide, "x"), picture(0, 1, 16))


def test_shrinking_averages_rather_than_drops_pixels() -> None:
    checkers = np.tile(np.array([[0, 255], [255, 0]], dtype=np.uint8), (32, 32))[:, :, None]
    inner = Frame(16, "resize").apply(checkers, "x")[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127).max() <= 2


def test_padding_refuses_an_image_that_is_larger() -> None:
    with pytest.raises(SourceError, match="row 3: an image of 40x20 does not fit"):
        Frame(32, "pad").apply(np.zeros((40, 20, 1), dtype=np.uint8), "row 3")
    assert Frame(32, "pad").apply(picture(0, 1, 8), "x").shape == (32, 32, 1)


def test_stacked_pictures_are_channels_first_in_order() -> None:
    named = [(str(seed), picture(seed)) for seed in range(3)]
    stacked = stack(named, 3, (3, 8, 8), Frame(None))
    assert np.array_equal(stacked.numpy(), np.stack([picture(seed) for seed in range(3)]).transpose(0, 3, 1, 2))
