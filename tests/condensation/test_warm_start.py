"""A run starts from the images of an earlier one, and is the same run wherever that file is."""

import shutil
from pathlib import Path

import pytest
import torch

from condense.condensation.config import RunConfig
from condense.condensation.warm_start import pin_start, starting_images
from condense.data.sources import open_source
from condense.errors import ConfigError, DatasetError
from condense.settings import resolve
from condense.synthetic.config import ImagesConfig
from condense.synthetic.dataset import CondensedDataset, write_dataset
from condense.synthetic.synthetic_set import initial_set
from tests.builders.runs import config, run
from tests.conftest import Command


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[CondensedDataset, Path]:
    made = run(config("images_per_class=2", "evaluation.test=false", "outer_steps=1"))
    return made, write_dataset(tmp_path_factory.mktemp("earlier") / "data.parquet", made)


def from_set(path: Path, *overrides: str) -> RunConfig:
    wanted = ("images_per_class=2", "evaluation.test=false", "outer_steps=1")
    return config(*wanted, f"images.init=set:{path}", *overrides)


@pytest.mark.parametrize("parameterisation", ["pixels", "pyramid"])
def test_a_run_that_hardly_moves_ends_with_the_images_that_it_started_from(
    parameterisation: str, earlier: tuple[CondensedDataset, Path]
) -> None:
    start, path = earlier
    still = from_set(path.parent, f"images.parameterisation={parameterisation}", "images.learning_rate=1e-9")
    assert torch.equal(run(still).images, start.images)
    moved = run(from_set(path))
    assert not torch.equal(moved.images, start.images)
    assert moved.provenance["config"]["images"]["init"] == f"set:{path}"


def test_a_slice_of_the_classes_starts_from_its_own_rows(earlier: tuple[CondensedDataset, Path]) -> None:
    start, path = earlier
    wanted = from_set(path)
    images = starting_images(wanted, open_source("digits", wanted.data, seed=0))
    assert images is not None
    real = [torch.zeros((1, 1, 16, 16), dtype=torch.uint8)] * 3
    part = initial_set(ImagesConfig(init="set:x"), real, range(4, 7), 2, seed=0, start=images[4:7])
    assert torch.equal(part.images_uint8().flatten(0, 1), start.images[8:14])


def test_a_run_is_what_its_set_holds_wherever_the_file_is(
    earlier: tuple[CondensedDataset, Path], tmp_path: Path
) -> None:
    _, path = earlier
    copied = Path(shutil.copy(path, tmp_path / "copied.parquet"))
    one, two = pin_start(from_set(path)), pin_start(from_set(copied))
    assert one.identity() == two.identity()
    assert one.identity() not in (from_set(path).identity(), config("images_per_class=2").identity())
    assert pin_start(one) == one
    other = write_dataset(tmp_path / "other.parquet", run(from_set(path)))
    assert pin_start(from_set(other)).identity() != one.identity()
    with pytest.raises(ConfigError, match=r"images.init_digest asks for"):
        pin_start(from_set(other, f"images.init_digest={one.images.init_digest}"))


WRONG = {
    "images per class": "images_per_class=3",
    "images of shape": "data.image_size=8",
    "images.factor": "images.factor=2",
}


@pytest.mark.parametrize("named", WRONG)
def test_a_set_of_another_kind_is_refused(named: str, earlier: tuple[CondensedDataset, Path]) -> None:
    wanted = from_set(earlier[1], WRONG[named])
    with pytest.raises(ConfigError, match=named):
        starting_images(wanted, open_source("digits", wanted.data, seed=0))


def test_what_is_no_set_is_one_error_before_anything_is_written(condense: Command, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "{source: digits, workers: 0, tracking_uri: none, images: {init: 'set:none.parquet'}}"
    )
    ended = condense("run", "run.yaml")
    assert (ended.code, "none.parquet does not exist" in ended.err) == (2, True)
    assert not list(tmp_path.rglob("*.parquet"))
    with pytest.raises(DatasetError):
        pin_start(from_set(tmp_path / "none.parquet"))
    with pytest.raises(ConfigError, match="unknown init 'tile'"):
        resolve(RunConfig, None, ["images.init=tile"])
    with pytest.raises(ConfigError, match="init_digest is of the set"):
        resolve(RunConfig, None, ["images.init_digest=abc"])
