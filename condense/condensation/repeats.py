"""Finds what an earlier run of the same config on the same data has made, so that nothing is computed twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from condense.condensation.config import RunConfig
from condense.condensation.in_process import folder_of
from condense.data.digests import class_digests, combine_digests
from condense.data.sources import DataSource
from condense.errors import DatasetError, OutputError
from condense.synthetic.dataset import PARQUET, CondensedDataset, read_dataset

log = logging.getLogger(__name__)


def made_before(config: RunConfig, source: DataSource, file: Path | None = None) -> CondensedDataset | None:
    """Returns the dataset in a file if it is whole and a run of this config makes it of this data; None otherwise.

    The train images are read for it, but only where the config is the file's.

    Args:
        config: held to its flow by `pin`.
        source: as `open_checked` opened it.
        file: a condensed dataset; None looks where the run writes its own.

    Raises:
        SourceError: an image cannot be read.
    """
    file = file or folder_of(config, source.name) / PARQUET
    if not file.is_file():
        return None
    try:
        dataset = read_dataset(file)
    except DatasetError as error:
        log.warning("computing again: %s", error.problem)
        return None
    facts = dataset.provenance
    if facts.get("identity") != config.identity():
        return None
    same = facts["source"]["digest"] == combine_digests(class_digests(source.load("train")))
    return dataset if same else None


def unless_made_meanwhile(
    config: RunConfig, source: DataSource, compute: Callable[[], CondensedDataset]
) -> CondensedDataset:
    """Returns what `compute` does, or what another process with the same config has made meanwhile.

    That one has removed the checkpoints of both when it ended, and this one cannot write there any more.
    """
    try:
        return compute()
    except OutputError:
        made = made_before(config, source)
        if made is None:
            raise
        log.warning("another process with the same config has ended: its dataset is taken")
        return made
