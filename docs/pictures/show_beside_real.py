"""Draws a condensed set beside real images of the same classes: the picture of the README.

    python docs/pictures/show_beside_real.py condensed/NAME/data.parquet picture.png [SOURCE]

The upper rows are random real images, one column for each class; the lower rows are the set. SOURCE is where the real
data is, if it is no longer where the run found it.
"""

from __future__ import annotations

import sys

import matplotlib
import torch

import condense
from condense.condensation.config import RunConfig
from condense.data.sources import open_source

ROWS = 2  # of each kind

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402


def main() -> None:
    path, picture, *source = sys.argv[1:]
    dataset = condense.load_dataset(path)
    config = RunConfig.model_validate(dataset.provenance["config"])
    real = open_source(source[0] if source else config.source, config.data, seed=0).load("train", limit=2000)
    rows = [("real", real.images, real.labels), ("condensed", dataset.images, dataset.labels)]
    counts = {name: min(ROWS, int((labels == 0).sum())) for name, _, labels in rows}
    total, classes = sum(counts.values()), len(dataset.class_names)
    figure, axes = pyplot.subplots(total, classes, figsize=(classes, total + 0.4), layout="constrained", squeeze=False)
    place = 0
    for name, images, labels in rows:
        for row in range(counts[name]):
            for label in range(classes):
                image = images[labels == label][row].permute(1, 2, 0)
                shown = axes[place, label]
                shown.imshow(torch.cat([image] * (3 // image.shape[2]), 2), interpolation="nearest")
                shown.set(xticks=[], yticks=[])
                if place == 0:
                    shown.set_title(dataset.class_names[label], fontsize=7)
            axes[place, 0].set_ylabel(name, fontsize=8)
            place += 1
    figure.savefig(picture, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
