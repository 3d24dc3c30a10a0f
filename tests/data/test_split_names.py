"""Which files and folders are train, validation and test, as their names say it, and what cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condense.data.config import DataConfig
from condense.data.parquet_files import split_files
from condense.data.sources import DataSource, open_source
from condense.errors import SourceError
from condense.reports import console
from tests.builders.sources import picture, png, rows, write_hub

SPLITS = ("train", "validation", "test")


def write_files(folder: Path, *names: str) -> Path:
    """Writes one Parquet file of 20 rows for each name, of pictures that tell which."""
    for number, name in enumerate(names):
        write_hub(folder / name, rows(20, 1, start=100 * number), [0, 1] * 10)
    return folder


def write_images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(picture(number, 1)))
    return folder


def opened(spec: str, **data: Any) -> DataSource:
    return open_source(spec, DataConfig(image_size=None, **data), seed=0)


def refused(spec: str, **data: Any) -> str:
    with pytest.raises(SourceError) as caught:
        opened(spec, **data)
    return str(caught.value)


def found(folder: Path, **settings: Any) -> tuple[list[str], list[str], list[str]]:
    splits = split_files(str(folder), **settings)

    def below(files: Any) -> list[str]:
        return [] if files is None else [path[len(str(folder)) + 1 :] for path in files.paths]

    return below(splits.train), below(splits.validation), below(splits.test)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("training.parquet", "valid.parquet", "testing.parquet"),
        ("Train.parquet", "Dev.parquet", "TEST.parquet"),
        ("train-00000-of-00002.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train/x.parquet", "data/val/x.parquet", "data/test/x.parquet"),
        ("pets_train.parquet", "pets_val.parquet", "pets_test.parquet"),
        ("train/0000.parquet", "validation/0000.parquet", "eval/0000.parquet"),
        ("plain_text/train-0.parquet", "plain_text/dev-0.parquet", "plain_text/evaluation-0.parquet"),
    ],
)
def test_splits_are_known_by_a_word_of_the_file_or_folder(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    write_files(tmp_path, train, validation, test)
    assert found(tmp_path) == ([train], [validation], [test])
    source = opened(f"parquet:{tmp_path}")
    for number, split in enumerate(SPLITS):
        expected = np.stack([picture(100 * number + row, 1) for row in range(20)]).transpose(0, 3, 1, 2)
        assert np.array_equal(source.load(split).images.numpy(), expected)


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["a.parquet", "b.parquet"], ["a.parquet", "b.parquet"], []),
        (["strain.parquet", "latest.parquet"], ["latest.parquet", "strain.parquet"], []),
        (["mytrain.parquet", "mytest.parquet"], ["mytrain.parquet"], ["mytest.parquet"]),
        (["mnistTrain.parquet", "mnistTest.parquet"], ["mnistTrain.parquet"], ["mnistTest.parquet"]),
        (["train.parquet", "test.parquet", "eval.parquet"], ["train.parquet"], ["test.parquet"]),
        (["train.parquet", "test.parquet", "other_test.parquet"], ["train.parquet"], ["test.parquet"]),
    ],
)
def test_parts_of_words_name_a_split_only_in_a_pair(
    tmp_path: Path, names: list[str], train: list[str], test: list[str]
) -> None:
    assert found(write_files(tmp_path, *names)) == (train, [], test)


def test_beside_one_file_the_other_splits_are_found_by_name(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        *("Pets-Train-00000-of-00002.parquet", "Pets-Test-00000-of-00001.parquet", "Pets-Valid.parquet"),
        *("Pets-Train-00001-of-00002.parquet", "Dogs-Test.parquet"),
    )
    source = opened(f"parquet:{tmp_path / 'Pets-Train-00000-of-00002.parquet'}")
    assert source.description()["test"] == str(tmp_path / "Pets-Test-00000-of-00001.parquet")
    assert source.description()["validation"] == str(tmp_path / "Pets-Valid.parquet")
    assert [source.count(split) for split in SPLITS] == [20, 20, 20]
    assert source.name == "Pets"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.parquet", "extra.parquet"], "extra.parquet: no split in the name, but train.parquet have one"),
        (["cats/train.parquet", "dogs/train.parquet"], "2 configurations, cats, dogs: cats/train.parquet, dogs"),
        (["cats_train.parquet", "dogs_train.parquet"], "2 configurations, cats, dogs"),
        (["train.parquet", "a_test.parquet", "b_test.parquet"], "2 configurations, a, b"),
        (["train/test-0.parquet"], "train/test-0.parquet names two splits, test and train"),
        (["test.parquet"], "holds no Parquet file to train on"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_was_found(tmp_path: Path, names: list[str], said: str) -> None:
    assert said in refused(f"parquet:{write_files(tmp_path, *names)}")


def test_a_configuration_is_chosen_by_its_setting(tmp_path: Path) -> None:
    write_files(tmp_path, "cats/train.parquet", "cats/test.parquet", "dogs/train.parquet", "dogs/test.parquet")
    assert "data.config=cats, or the files with data.split_files" in refused(f"parquet:{tmp_path}")
    assert found(tmp_path, config="dogs") == (["dogs/train.parquet"], [], ["dogs/test.parquet"])
    assert "no configuration 'cows'; there is: cats, dogs" in refused(f"parquet:{tmp_path}", config="cows")
    told = opened(f"parquet:{tmp_path}", config="dogs").description()["splits"]
    assert "not read: of another configuration: cats/test.parquet, cats/train.parquet" in told


def test_files_are_chosen_by_their_setting(tmp_path: Path) -> None:
    write_files(tmp_path, "one.parquet", "two.parquet", "more/three.parquet")
    source = opened(f"parquet:{tmp_path}", split_files={"train": "t*", "test": "one*"})
    assert [source.count(split) for split in SPLITS] == [18, 2, 20]
    assert "not read: not in data.split_files: more/three.parquet" in source.description()["splits"]
    for given, said in (
        ({"train": "x*"}, "data.split_files.train=x* fits none of: more/three.parquet, one.parquet, two.parquet"),
        ({"train": "*", "test": "one*"}, "data.split_files gives one.parquet to two splits"),
        ({"test": "one*"}, "names no train files"),
    ):
        assert said in refused(f"parquet:{tmp_path}", split_files=given)


def test_a_source_tells_its_splits_and_counts_what_it_does_not_read(tmp_path: Path) -> None:
    write_files(tmp_path, "train-0.parquet", "train-1.parquet", "test.parquet", ".cache/x.parquet", "eval.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "info.json").write_text("{}")
    assert opened(f"parquet:{tmp_path}").description()["splits"] == [
        f"train: 36 images, {tmp_path} (train-0.parquet, train-1.parquet)",
        "validation: 4 images, 10% of train, carved with seed 0",
        f"test: 20 images, {tmp_path / 'test.parquet'}",
        "not read: not read beside test: eval.parquet",
        "not read: 1 hidden file",
        "not read: 2 files of other kinds (.json, .md)",
    ]


def test_the_terminal_shows_the_splits_of_a_source_once(tmp_path: Path) -> None:
    spec = f"parquet:{write_files(tmp_path, 'train.parquet', 'dev.parquet', 'test.parquet')}"
    with console.splits_shown(), console.out.capture() as shown:
        for _ in range(2):
            opened(spec)
    assert shown.get().splitlines() == [
        f"real images of {spec}",
        f"  train: 20 images, {tmp_path / 'train.parquet'}",
        f"  validation: 20 images, {tmp_path / 'dev.parquet'}",
        f"  test: 20 images, {tmp_path / 'test.parquet'}",
    ]


# Folders of images


def images(split: str, count: int, *classes: str) -> list[str]:
    return [f"{split}/{name}/{row}.png" for name in classes or ("cat", "dog") for row in range(count)]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("Train", "Val", "Test"), ("training", "valid", "testing"), ("pets_train", "pets_dev", "pets_eval")],
)
def test_folders_of_splits_are_known_by_a_word_in_any_case(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    write_images(tmp_path, *images(train, 5), *images(validation, 3), *images(test, 2))
    source = opened(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert [source.count(split) for split in SPLITS] == [10, 6, 4]
    expected = np.stack([picture(16 + row, 1) for row in range(4)]).transpose(0, 3, 1, 2)
    assert np.array_equal(source.load("test").images.numpy(), expected)


def test_a_class_may_be_named_as_a_split(tmp_path: Path) -> None:
    write_images(tmp_path, *images(".", 5, "train", "plane", "test tube"))
    assert opened(f"folder:{tmp_path}").class_names == ("plane", "test tube", "train")


def test_images_in_folders_of_a_class_are_of_that_class(tmp_path: Path) -> None:
    nested = [f"cat/persian/{row}.png" for row in range(4)]
    write_images(tmp_path, *nested, *images(".", 3, "cat", "dog"))
    source = opened(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert sum(np.bincount(source.load(split).labels.numpy(), minlength=2) for split in SPLITS).tolist() == [7, 3]


def test_hidden_files_and_other_kinds_are_not_read_and_are_counted(tmp_path: Path) -> None:
    hidden = ["cat/.0.png", "cat/.cache/1.png", "__MACOSX/cat/0.png", "dog/._1.png"]
    write_images(tmp_path, *images(".", 5), *hidden, "stray.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    source = opened(f"folder:{tmp_path}")
    assert sum(source.count(split) for split in SPLITS) == 10
    assert source.description()["splits"][3:] == [
        "not read: 2 hidden files",
        "not read: 1 file of other kinds (.txt)",
        "not read: 1 image outside of the folders of classes",
    ]


def test_folders_that_cannot_be_told_are_refused_and_can_be_chosen(tmp_path: Path) -> None:
    write_images(tmp_path, *images("train", 5), *images("holdout", 2))
    assert "holdout: no split in the name, but train name one" in refused(f"folder:{tmp_path}")
    source = opened(f"folder:{tmp_path}", split_files={"train": "train", "test": "holdout"})
    assert [source.count(split) for split in SPLITS] == [8, 2, 4]
    both = write_images(tmp_path / "both", *images("train", 2), *images("Training", 2))
    assert "Training and train are both train" in refused(f"folder:{both}")
    assert "split_files.train=*rain* fits 2 folders" in refused(f"folder:{both}", split_files={"train": "*rain*"})
    assert "holds no folder of train, but Test" in refused(f"folder:{write_images(tmp_path / 'x', *images('Test', 2))}")


def test_folders_of_splits_without_folders_of_classes_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{split}/{row}.png" for split in ("train", "test") for row in range(5)))
    assert "train holds no folders" in refused(f"folder:{tmp_path}")
