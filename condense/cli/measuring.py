"""The command that measures bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condense.cli.options import REFERENCE, STORE, Tracking


def bits(
    what: Annotated[
        str, typer.Argument(help=f"A source (digits, parquet:FILE ...), a file or folder, or {REFERENCE}.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="How the images are read, as in data.image_size=28.", metavar="[data.KEY=VALUE]..."),
    ] = None,
    flow: Annotated[str, typer.Option(help="A shipped flow, a file, models:/flow-NAME@best, or auto.")] = "auto",
    split: Annotated[str, typer.Option(help="Of a source: train, validation or test.")] = "train",
    limit: Annotated[int, typer.Option(min=1, help="Images measured of a source.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Dequantisation draws per image.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for pictures and a row per image.")] = None,
    tracking_uri: Tracking = STORE,
) -> None:
    """Bits per dimension, bits and PNG bytes of a condensed dataset or of real images, by class and image.

    With -o: images.parquet (one row per image), sorted.png, histogram.png, map.png (where in an image its bits are).
    """
    from condense import api
    from condense.reports import console
    from condense.reports.measurement import BitsConfig, write_measured
    from condense.settings import resolve

    data = resolve(BitsConfig, None, overrides or []).data
    measured = api.measure(
        what, flow=flow, data=data, split=split, limit=limit, draws=draws, seed=seed, tracking_uri=tracking_uri
    )
    console.show_bits(measured.title, measured.report, measured.data.labels, measured.data.class_names)
    if out is None:
        console.out.print("pictures, a map of the bits and a row per image: add -o DIR")
        return
    for path in write_measured(out, measured):
        console.out.print(f"wrote {path}")
