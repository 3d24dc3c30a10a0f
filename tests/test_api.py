"""`import condense`: the public names, and that the functions do what the commands do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import condense
from condense.errors import ConfigError, DatasetError
from condense.settings import resolve
from tests.conftest import QUICKSTART, TINY, condense_in

FOLDER = ["README.md", "data.parquet", "preview.png"]  # no flow measures 16x16 images: no bits.png


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> condense.RunResult:
    folder = tmp_path_factory.mktemp("api")
    return condense.run(QUICKSTART, (*TINY, f"output={folder / 'out'}", f"storage={folder / 'runs'}"))


def test_importing_condense_loads_nothing_and_every_public_name_is_there() -> None:
    program = "import sys, condense; assert 'torch' not in sys.modules; print(*condense.__all__)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == condense.__all__
    assert all(getattr(condense, name) is not None for name in condense.__all__)
    assert dir(condense) == sorted(condense.__all__)
    with pytest.raises(AttributeError, match="no attribute 'condence'"):
        condense.condence  # noqa: B018


def test_a_run_in_process_leaves_the_whole_folder(result: condense.RunResult) -> None:
    assert sorted(file.name for file in result.folder.iterdir()) == FOLDER
    assert result.path == result.folder / "data.parquet"
    assert result.version is None
    assert (
        f"# {result.dataset.provenance['config']['name'] or 'digits-ipc1'}\n"
        in (result.folder / "README.md").read_text()
    )


def test_the_function_and_the_command_make_the_same_set(result: condense.RunResult, tmp_path: Path) -> None:
    outcome = condense_in(tmp_path, "run", QUICKSTART, *TINY)
    by_command = condense.load_dataset(tmp_path / outcome.dataset)
    assert by_command.provenance["content_digest"] == result.dataset.provenance["content_digest"]
    assert by_command.provenance["identity"] == result.dataset.provenance["identity"]
    assert sorted(file.name for file in (tmp_path / outcome.dataset).parent.iterdir()) == FOLDER


def test_a_config_may_be_a_model_a_dictionary_or_a_file(result: condense.RunResult) -> None:
    from condense.api import resolve_config

    wanted = resolve(condense.RunConfig, QUICKSTART, TINY)
    assert resolve_config(condense.RunConfig, wanted) is wanted
    assert resolve_config(condense.RunConfig, str(QUICKSTART), TINY) == wanted
    few = {"source": "digits", "images": {"recipe": "dc"}}
    from_dictionary = resolve_config(condense.RunConfig, few, ["images.learning_rate=2", "seed=3"])
    assert (from_dictionary.seed, from_dictionary.images.learning_rate, from_dictionary.images.optimizer) == (
        3,
        2,
        "sgd",
    )
    changed = resolve_config(condense.RunConfig, condense.RunConfig(source="digits"), ["images.recipe=dc"])
    assert changed.images.optimizer == "sgd", "a default that nobody set gives way to a recipe"
    assert few == {"source": "digits", "images": {"recipe": "dc"}}, "the caller's dictionary stays as it was"


def test_a_set_is_loaded_trained_on_and_evaluated(result: condense.RunResult) -> None:
    loaded = condense.load_dataset(result.folder)
    assert torch.equal(loaded.images, result.dataset.images)
    images, labels = next(iter(DataLoader(condense.CondensedImages(result.path, normalise=True), batch_size=10)))
    assert images.shape == (10, 1, 16, 16)
    assert sorted(labels.tolist()) == list(range(10))
    found = condense.evaluate(loaded)
    assert found.as_stated
    assert found.evaluation.description() == loaded.provenance["evaluation"]


def test_bits_are_measured_of_a_source_and_of_a_set(result: condense.RunResult) -> None:
    measured = condense.measure("digits", limit=20, draws=1)
    assert len(measured.report.bits_per_dim) == 20
    assert measured.report.mean > 0
    assert len(condense.measure(result.path, draws=1).report.bits_per_dim) == 10


def test_misuse_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'dcc'"):
        condense.evaluate(tmp_path / "data.parquet", recipe="dcc")
    with pytest.raises(ConfigError, match="unknown key 'souce'"):
        condense.run({"souce": "digits"})
    with pytest.raises(DatasetError, match=r"none\.parquet"):
        condense.load_dataset(tmp_path / "none.parquet")
