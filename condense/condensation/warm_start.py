"""Starts a run from the images of an earlier one: `images.init: set:PATH` names the Parquet file that it wrote.

Where both runs have soft labels, these are taken over too. What decides the result is the content of the file, not its
place: a run's identity has the digest of the content.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from condense.condensation.config import RunConfig
from condense.data.sources import DataSource
from condense.errors import ConfigError
from condense.synthetic.config import FROM_SET
from condense.synthetic.dataset import PARQUET, CondensedDataset, read_dataset


def starting_images(config: RunConfig, source: DataSource) -> Tensor | None:
    """Returns the images of the set that a run starts from, uint8 (C, ipc, channels, H, W); None where it starts from
    none.

    Raises:
        DatasetError: no condensed dataset there.
        ConfigError: of other classes, another shape, another number of images or another decoder than the run's.
    """
    if not config.images.init.startswith(FROM_SET):
        return None
    start = _read(config)
    ipc, factor = config.images_per_class, int(start.provenance.get("decoder", {}).get("factor", 1))
    counts = start.labels.bincount(minlength=len(start.class_names)).tolist()
    differences = (
        ("classes", start.class_names, source.class_names),
        ("images of shape", tuple(start.images.shape[1:]), source.shape),
        ("images.factor", factor, config.images.factor),
        ("images per class", sorted(set(counts)), [ipc]),
    )
    for what, has, wanted in differences:
        if has != wanted:
            raise ConfigError(
                f"images.init: {_path(config)} has {what} {has}, the run {wanted}",
                "start from a set of the same kind, or leave images.init out",
            )
    rows: Tensor = start.images[start.labels.argsort(stable=True)]
    return rows.view(len(counts), ipc, *source.shape)


def starting_labels(config: RunConfig, source: DataSource) -> Tensor | None:
    """Returns the soft labels of `starting_images`, float32 (C, ipc, classes); None where there are none."""
    if not config.images.init.startswith(FROM_SET):
        return None
    start = _read(config)
    if start.soft_labels is None:
        return None
    rows: Tensor = start.soft_labels[start.labels.argsort(stable=True)]
    return rows.view(len(source.class_names), config.images_per_class, -1)


def pin_start(config: RunConfig) -> RunConfig:
    """Returns the config with the digest, and the whole path, of the set that it starts from.

    Raises:
        DatasetError: no condensed dataset there.
        ConfigError: it is not the one of `images.init_digest`.
    """
    if not config.images.init.startswith(FROM_SET):
        return config
    digest = _read(config).provenance["content_digest"]
    held = {"init": f"{FROM_SET}{_path(config).absolute()}", "init_digest": digest}
    return config.model_copy(update={"images": config.images.model_copy(update=held)})


def _path(config: RunConfig) -> Path:
    path = Path(config.images.init.removeprefix(FROM_SET))
    return path / PARQUET if path.is_dir() else path


def _read(config: RunConfig) -> CondensedDataset:
    start = read_dataset(_path(config))
    digest, wanted = start.provenance["content_digest"], config.images.init_digest
    if wanted not in (None, digest):
        raise ConfigError(
            f"images.init: {_path(config)} has digest {digest[:16]}, and images.init_digest asks for {wanted[:16]}",
            "give the set of that digest, or leave images.init_digest out",
        )
    return start
