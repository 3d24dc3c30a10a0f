"""Labels and class names: of one split, and of train and test together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.errors import SourceError
from tests.builders.sources import hub_table, picture, rows, write_hub


def with_names(path: Path, labels: list[int], words: Sequence[str]) -> Path:
    """Writes integer labels with a column of their names, and no metadata."""
    table = hub_table(rows(len(labels), start=50), labels, None)
    pq.write_table(table.append_column("label_name", pa.array([words[label] for label in labels])), path)
    return path


def with_words(path: Path, labels: list[str]) -> Path:
    table = hub_table(rows(len(labels), start=50), [0] * len(labels), None)
    pq.write_table(table.set_column(1, "label", pa.array(labels)), path)
    return path


def refused(folder: Path, split: Any = "test", **data: Any) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(f"parquet:{folder}", DataConfig(image_size=None, **data), seed=0).load(split)
    return str(caught.value)


def test_labels_of_test_are_brought_into_the_order_of_train(tmp_path: Path) -> None:
    for number, (train, test) in enumerate([("declared", "declared"), ("declared", "names"), ("names", "declared")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        if train == "declared":
            write_hub(folder / "train.parquet", rows(20), [0, 1] * 10, ("cat", "dog"))
        else:
            with_names(folder / "train.parquet", [0, 1] * 10, ["cat", "dog"])
        if test == "declared":
            write_hub(folder / "test.parquet", rows(3, start=50), [0, 0, 1], ("dog", "cat"))
        else:
            with_names(folder / "test.parquet", [0, 0, 1], ["dog", "cat"])
        loaded = open_source(f"parquet:{folder}", DataConfig(image_size=None), seed=0).load("test")
        assert loaded.labels.tolist() == [1, 1, 0]
        assert loaded.class_names == ("cat", "dog")
        assert np.array_equal(loaded.images[2].numpy(), picture(52).transpose(2, 0, 1))


def test_a_test_split_may_lack_classes(tmp_path: Path) -> None:
    write_hub(tmp_path / "train.parquet", rows(21), [0, 1, 2] * 7, "abc")
    with_names(tmp_path / "test.parquet", [2, 2], "xxc")
    source = open_source(f"parquet:{tmp_path}", DataConfig(image_size=None), seed=0)
    assert source.load("test").labels.tolist() == [2, 2]
    with_words(tmp_path / "test.parquet", ["c", "a"])
    source = open_source(f"parquet:{tmp_path}", DataConfig(image_size=None), seed=0)
    assert source.load("test").labels.tolist() == [2, 0]


def test_a_test_split_of_another_class_names_its_row(tmp_path: Path) -> None:
    with_names(tmp_path / "train.parquet", [0, 1] * 10, "ab")
    with_names(tmp_path / "test.parquet", [0, 1, 1], "bc")
    assert "test.parquet, row 1: class 'c' is not one of train, ['a', 'b']" in refused(tmp_path)
    write_hub(tmp_path / "test.parquet", rows(2), [0, 1], "bc")
    assert "test.parquet: its classes ['b', 'c'] are not those of train, ['a', 'b']" in refused(tmp_path, "train")


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    write_hub(tmp_path / "train.parquet", rows(20), [0, 1] * 10, ("cat", "cat"))
    assert "labels 0 and 1 have the same class name, 'cat'" in refused(tmp_path)
    with_names(tmp_path / "train.parquet", [0, 1] * 10, ["cat", "cat"])
    assert "train.parquet, row 1: label 1 is named 'cat', as label 0 is" in refused(tmp_path)


@pytest.mark.parametrize("names", ["abc", None])
def test_classes_without_train_images_are_left_out_by_a_setting(tmp_path: Path, names: str | None) -> None:
    write_hub(tmp_path / "train.parquet", rows(20), [0, 2] * 10, names)
    write_hub(tmp_path / "test.parquet", rows(3, start=50), [2, 0, 2], names)
    assert "data.drop_empty_classes=true" in refused(tmp_path)
    source = open_source(f"parquet:{tmp_path}", DataConfig(image_size=None, drop_empty_classes=True), seed=0)
    assert source.class_names == (("a", "c") if names else ("0", "2"))
    assert source.class_counts == (9, 9)
    test = source.load("test")
    assert test.labels.tolist() == [1, 0, 1]
    assert np.array_equal(test.images[1].numpy(), picture(51).transpose(2, 0, 1))
    assert [source.load_classes(range(2))[label].shape[0] for label in (0, 1)] == [9, 9]


def test_test_images_of_a_class_that_was_left_out_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_hub(tmp_path / "train.parquet", rows(20), [0, 2] * 10, "abc")
    write_hub(tmp_path / "test.parquet", rows(4, start=50), [1, 2, 0, 1], "abc")
    source = open_source(f"parquet:{tmp_path}", DataConfig(image_size=None, drop_empty_classes=True), seed=0)
    assert "not read: classes without a train image: b" in source.description()["splits"]
    test = source.load("test")
    assert test.labels.tolist() == [1, 0]
    assert np.array_equal(test.images[0].numpy(), picture(51).transpose(2, 0, 1))
    assert source.count("test") == 2
    assert "2 images of classes without a train image are not used" in caplog.text


def test_a_run_needs_two_classes(tmp_path: Path) -> None:
    write_hub(tmp_path / "train.parquet", rows(12), [0] * 12, None)
    config = RunConfig(source=f"parquet:{tmp_path}", bits_weight=0, workers=0, data=DataConfig(image_size=8))
    with pytest.raises(SourceError, match="all images are of one class, '0'"):
        open_checked(config)
