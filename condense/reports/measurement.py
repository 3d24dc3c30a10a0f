"""Measures the bits of whatever can be named: a source, a condensed file, any Parquet file or image folder.

measured = measure_named("digits", limit=100)
measured.report.mean, measured.report.bits_per_dim, measured.report.png_bytes
measured.maps(places)                     # bits per pixel, adding up to each image's bits
write_measured(Path("out"), measured)     # pictures, and one row per image as Parquet
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from condense.data.config import DataConfig
from condense.data.decoding import Frame, encode_png, framed_shape, stack
from condense.data.forms import SOURCES
from condense.data.readers import torchvision_name
from condense.data.sources import LabelledImages, open_source
from condense.data.split_names import Split
from condense.errors import ConfigError, FlowError
from condense.files import check_folder_writable, write_whole
from condense.flow.bits import BitsReport, Density, measure
from condense.flow.bits_map import MappedDensity, bits_map
from condense.flow.store import flow_for, load_flow
from condense.reports import bits_pictures
from condense.settings import Settings
from condense.synthetic.dataset import PARQUET, read_dataset

AUTO_SIDE = 32  # of the shipped flows: what images are brought to where nothing says otherwise
NUMBERS, SORTED, HISTOGRAM, MAP = "images.parquet", "sorted.png", "histogram.png", "map.png"


class BitsConfig(Settings):
    """The settings that `condense bits` takes as data.KEY=VALUE."""

    data: DataConfig = DataConfig()


@dataclass(frozen=True)
class Measured:
    """Images, the flow that they were measured with, and what it says.

    what: as it was asked for. data: the images at the flow's size. flow: its name or file; density: the flow itself.
    report: bits of each image. seed: of the noise.
    """

    what: str
    data: LabelledImages
    flow: str
    density: Density
    report: BitsReport
    seed: int

    @property
    def title(self) -> str:
        """What was measured by what, with how many draws, in one line."""
        name = self.what if len(self.what) <= 60 else f".../{self.what.rpartition('/')[2]}"
        draws = self.report.draws
        flow = f"{Path(self.flow).stem} ({self.report.digest[:12]})"
        return f"{name} under {flow}, {draws} draw{'s' * (draws > 1)}"

    def maps(self, places: Tensor) -> Tensor:
        """Maps the bits per pixel (M, H, W) of the images at `places` (M,); each map adds up to the image's bits."""
        return bits_map(self.density, self.data.images, places, seed=self.seed, draws=self.report.draws)


def measure_named(
    what: str,
    *,
    flow: str = "auto",
    data: DataConfig | None = None,
    split: str = "train",
    limit: int = 500,
    draws: int = 2,
    seed: int = 0,
) -> Measured:
    """Returns bits per dim, bits and PNG bytes of the images that `what` names.

    Args:
        what: a source (as `open_source` takes it), a condensed file or its folder, another Parquet file, or a folder of
            images.
        flow: a shipped name, a file, or "auto": the shipped flow of the images' shape.
        data: how they are read. Unless `image_size` is set they are brought to the flow's size, by the rule of a run
            (28x28 is padded to 32x32).
        split: train, validation or test of a source; a condensed file has but one.
        limit: images of a source at most, drawn with the seed; a condensed file is measured whole.
        draws: dequantisation draws per image; a Monte-Carlo error needs two.
        seed: of the validation split, the drawn images and the noise.

    Raises:
        SourceError, DatasetError: what is named cannot be read. FlowError: no flow, or none of that shape.
        ConfigError: an unknown split.
    """
    if split not in get_args(Split):
        raise ConfigError(f"unknown split {split!r}", f"one of: {', '.join(get_args(Split))}")
    data = data or DataConfig()
    density = None if flow == "auto" else load_flow(flow)
    sized = "image_size" in data.model_fields_set
    if not sized:
        data = data.model_copy(update={"image_size": AUTO_SIDE if density is None else density.shape[1]})
    spec = source_named(what)
    if spec is not None:
        images = open_source(spec, data, seed=seed).load(cast(Split, split), limit=limit)
    else:
        read = read_dataset(Path(what) / PARQUET if Path(what).is_dir() else what)
        fits = not sized and density is None and _fits_a_shipped_flow(read.images)
        framed = read.images if fits else _framed(read.images, data, what)
        images = LabelledImages(framed, read.labels, read.class_names)
    name = flow_for(_shape(images.images)) if density is None else flow
    density = density or load_flow(name)
    return Measured(what, images, name, density, measure(density, images.images, seed=seed, draws=draws), seed)


def source_named(what: str) -> str | None:
    """Returns the source spec that `what` is or stands for; None where it can only be a condensed dataset, here or
    elsewhere.

    A path to a Parquet file that holds no condensed dataset, or to a folder without one, stands for parquet:PATH and
    folder:PATH.
    """
    form, _, rest = what.partition(":")
    path = Path(what)
    if not path.exists():
        known = (form in SOURCES and rest) or what.lower() == "digits" or torchvision_name(what)
        return what if known else None
    if path.is_dir():
        if (path / PARQUET).exists():
            return None
        return f"parquet:{what}" if next(path.glob("*.parquet"), None) else f"folder:{what}"
    try:
        return None if b"condense" in (pq.read_schema(path).metadata or {}) else f"parquet:{what}"
    except (OSError, pa.ArrowException):
        return None  # read_dataset says what is wrong with it


def write_measured(folder: Path, measured: Measured) -> list[Path]:
    """Writes what was measured and returns the files.

    images.parquet: one row per image: the image, its label, bits_per_dim, bits, png_bytes and the Monte-Carlo error.
    sorted.png: the images from least to most bits, with their numbers. histogram.png: bits per dim under the flow and
    as PNG. map.png: bits per pixel of some of them, from least to most; not for a density without a map.

    Raises:
        OutputError: the folder cannot be written.
    """
    check_folder_writable(folder)
    report, images = measured.report, measured.data.images
    names = [measured.data.class_names[label] for label in measured.data.labels.tolist()]
    dims = images[0].numel()
    files = {
        NUMBERS: _table(measured, names),
        SORTED: bits_pictures.sorted_images(images, report.bits_per_dim, report.png_bytes, names, measured.title),
        HISTOGRAM: bits_pictures.histogram(report.bits_per_dim, report.png_bytes.double() * 8 / dims, measured.title),
    }
    if isinstance(measured.density, MappedDensity):
        places = bits_pictures.spread(report.bits_per_dim, bits_pictures.MAPPED)
        maps = measured.maps(places) / images.shape[1]
        files[MAP] = bits_pictures.maps(images[places], maps, report.bits_per_dim[places], measured.title)
    return [write_whole(folder / name, content) for name, content in files.items()]


def _framed(images: Tensor, data: DataConfig, where: str) -> Tensor:
    frame = Frame(data.image_size, data.fit)
    pictures = [(f"{where}, image {row}", image.permute(1, 2, 0).numpy()) for row, image in enumerate(images)]
    return stack(pictures, len(pictures), framed_shape(pictures[0][1], frame, pictures[0][0]), frame)


def _fits_a_shipped_flow(images: Tensor) -> bool:
    try:
        return bool(flow_for(_shape(images)))
    except FlowError:
        return False


def _shape(images: Tensor) -> tuple[int, int, int]:
    return images.shape[1], images.shape[2], images.shape[3]


def _table(measured: Measured, names: list[str]) -> bytes:
    report, data = measured.report, measured.data
    errors = report.standard_errors
    pictures = [{"bytes": encode_png(image), "path": f"{row:06d}.png"} for row, image in enumerate(data.images)]
    table = pa.table(
        {
            "image": pictures,
            "label": data.labels.tolist(),
            "label_name": names,
            "bits_per_dim": report.bits_per_dim.tolist(),
            "bits": report.bits.tolist(),
            "png_bytes": report.png_bytes.tolist(),
            "standard_error": pa.nulls(len(names), pa.float64()) if errors is None else errors.tolist(),
        }
    )
    about = {"what": measured.what, "flow_digest": report.digest, "draws": report.draws, "seed": measured.seed}
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"bits": json.dumps(about)}), stream, compression="zstd")
    return stream.getvalue()
