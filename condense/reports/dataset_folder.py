"""Writes the folder that a person gets: the dataset, its card and its figures.

The folder is data.parquet, README.md, preview.png and, where a flow measured the images, bits.png.
`datasets.load_dataset(FOLDER)` reads it.
"""

from __future__ import annotations

from pathlib import Path

from condense.errors import DatasetError
from condense.files import write_whole
from condense.reports.card import BITS, PREVIEW, card
from condense.reports.figures import bits_figure, preview
from condense.synthetic.dataset import PARQUET, CondensedDataset, read_dataset, write_dataset

CARD = "README.md"


def write_folder(folder: str | Path, dataset: CondensedDataset, *, name: str | None = None) -> Path:
    """Writes a dataset with its card and figures, each file whole or not at all.

    Args:
        folder: made where it does not exist; its name is the dataset's unless `name` is given.
        dataset: its provenance fills the card; keys that are missing are left out.

    Returns:
        The folder.

    Raises:
        OutputError: the folder cannot be written.
        DatasetError, NonFiniteError: as `write_dataset`.
    """
    folder = Path(folder)
    write_dataset(folder / PARQUET, dataset)
    write_whole(folder / PREVIEW, preview(dataset))
    if dataset.bits_per_dim is not None:
        write_whole(folder / BITS, bits_figure(dataset))
    write_whole(folder / CARD, card(dataset, name or folder.resolve().name).encode())
    return folder


def completed(folder: Path, dataset: CondensedDataset, *, name: str) -> Path:
    """Writes the folder of a dataset only where it is not there or not whole; returns the folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        facts = read_dataset(folder / PARQUET).provenance
    except DatasetError:
        return write_folder(folder, dataset, name=name)
    same = (facts["content_digest"], facts.get("identity")) == (
        dataset.provenance["content_digest"],
        dataset.provenance.get("identity"),
    )
    whole = same and (folder / CARD).is_file() and (folder / PREVIEW).is_file()
    return folder if whole else write_folder(folder, dataset, name=name)
