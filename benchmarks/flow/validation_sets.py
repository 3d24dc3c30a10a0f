"""Sets of ten images, one of each class: condensed with several weights of the bits, and real ones as controls."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.flow.validation_images import blurred
from condense.api import run
from condense.condensation.config import RunConfig
from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.settings import validate
from condense.synthetic.controls import jpeg, kmeans_real, random_real
from condense.synthetic.dataset import CondensedDataset, read_dataset, write_dataset

PER_CLASS = 150  # images that the sets are made from
WEIGHTS = (0, 3, 10, 40, 150, 600)


def make(data: Path, work: Path, channels: int, digest: str, flow: str) -> dict[str, Tensor]:
    """uint8 (10, channels, 32, 32) by name. Sets that are in `work` are not condensed again."""
    name = "fashion_mnist" if channels == 1 else "cifar10"
    source = _subset(data, work, name)
    sets = {}
    for weight in WEIGHTS:
        path = work / f"{digest}-{weight}.parquet"
        if not path.exists():
            print(f"condensing {name} with bits_weight {weight}", file=sys.stderr, flush=True)
            made = run(_config(source, flow, weight, work)).path
            made.rename(path)
        sets[f"condensed, bits_weight {weight}"] = read_dataset(path).images
    real = open_source(source, DataConfig(), seed=0).load("train")
    by_class = [real.images[real.labels == label] for label in range(10)]
    for seed in (0, 1):
        sets[f"random real {seed}"] = random_real(by_class, range(10), 1, seed=seed)[:, 0]
    sets["k-means real"] = kmeans_real(by_class, range(10), 1, seed=0)[:, 0]
    first = sets["random real 0"]
    for quality in (50, 20, 5):
        sets[f"random real 0, JPEG {quality}"] = jpeg(first, quality)
    for sigma in (0.6, 1.5):
        sets[f"random real 0, blur {sigma}"] = blurred(first, sigma)
    return sets


def _config(source: str, flow: str, weight: float, work: Path) -> RunConfig:
    values = {
        "source": source,
        "flow": flow,
        "bits_weight": weight,
        "outer_steps": 10,
        "workers": 0,
        "tracking_uri": "none",
        "output": str(work / "runs"),
        "storage": str(work / "checkpoints"),
        "network": {"width": 16},
        "matching": {"real_batch": 32},
        "evaluation": {"learners": 1, "controls": False, "validation_images": 50, "every": 10},
    }
    return validate(RunConfig, values, where="the sets' config")


def _subset(data: Path, work: Path, name: str) -> str:
    """A source of PER_CLASS train images of each class: the whole one takes longer to read than a set to condense."""
    path = work / f"{name}-{PER_CLASS}.parquet"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        whole = open_source(f"parquet:{data}/{name}_train.parquet", DataConfig(image_size=None), seed=0)
        part = whole.load("train", limit=14 * PER_CLASS)
        rows = torch.cat([(part.labels == label).nonzero()[:PER_CLASS, 0] for label in range(10)])
        write_dataset(path, CondensedDataset(part.images[rows], part.labels[rows], part.class_names, None, None))
    return f"parquet:{path}"
