"""The published methods as settings: each example runs, resumes exactly, and its file reproduces its accuracy."""

from pathlib import Path

import pytest
import torch

from condense.condensation.config import RunConfig
from condense.condensation.reproduce import evaluate_dataset
from condense.errors import ConfigError
from condense.settings import resolve
from condense.synthetic.dataset import read_dataset, write_dataset
from condense.synthetic.decoder import decode_uint8
from condense.workers.checkpoints import LocalCheckpoints
from tests.builders.runs import KilledAfter, KilledError, run
from tests.conftest import ROOT

TINY = (
    "source=digits",
    "workers=0",
    "data.image_size=16",
    "images_per_class=2",
    "network.name=mlp",
    "network.width=8",
    "network.depth=1",
    "outer_steps=4",
    "matching.real_batch=8",
    "evaluation.recipe=dc",
    "evaluation.learners=1",
    "evaluation.validation_images=40",
    "evaluation.every=4",
    "evaluation.controls=false",
    "checkpoint_every=1",
)
FEWER = ("matching.steps=2", "matching.learner_images=40")
SHORT = ("matching.steps=2", "matching.inner_epochs=3")
METHODS = {
    "dsa": SHORT,
    "dm": (),
    "idc": FEWER,
    "idc-pool": (*FEWER, "matching.learner_training=pool", "matching.pool=2", "matching.pool_steps=2"),
    "dsa-dream": (*SHORT, "matching.real_batch_choice=representative", "images.init=kmeans"),
}


def config(method: str, *overrides: str) -> RunConfig:
    example = ROOT / "examples" / f"{method.partition('-')[0]}.yaml"
    return resolve(RunConfig, example, (*TINY, *METHODS[method], *overrides))


@pytest.mark.parametrize("method", METHODS)
def test_a_published_method_runs_resumes_exactly_and_its_file_reproduces_its_accuracy(
    method: str, tmp_path: Path
) -> None:
    whole = run(config(method))
    with pytest.raises(KilledError):
        run(config(method), KilledAfter(tmp_path, 2))
    resumed = run(config(method), LocalCheckpoints(tmp_path))
    assert resumed.provenance["content_digest"] == whole.provenance["content_digest"]
    read = read_dataset(write_dataset(tmp_path / "set.parquet", whole))
    assert len(read.images) == 20
    if method.startswith("idc"):
        assert read.provenance["decoder"] == {"name": "tiles", "factor": 2}
        assert torch.equal(read.decoded()[0], decode_uint8(whole.images, 2))
    found = evaluate_dataset(read)
    assert found.stated is not None
    assert found.evaluation.mean == found.stated[0]


@pytest.mark.parametrize(
    ("method", "override", "named"),
    [
        ("dm", "matching.steps=3", "objective distribution takes a fresh"),
        ("dm", "matching.distance=mse", "objective distribution has no distance 'mse'"),
        ("dsa", "matching.distance=mmd", "unknown gradient distance 'mmd'"),
        ("idc", "images.factor=3", "images.factor 3 does not divide the images' 16x16"),
        pytest.param(
            "dsa",
            "gpus_per_worker=1",
            "gpus_per_worker=1, but this machine has no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ("dsa", "matching.learner_cutmix=true", "matching.learner_cutmix mixes real images"),
        ("idc", "matching.inner_epochs=2", "matching.inner_epochs counts epochs on the synthetic set"),
    ],
)
def test_settings_that_exclude_each_other_stop_a_run_before_it_starts(method: str, override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        run(config(method, override))


def test_a_factor_above_four_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images\.factor"):
        config("idc", "images.factor=5")
