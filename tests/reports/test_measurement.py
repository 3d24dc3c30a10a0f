"""`condense bits`: what it takes, what it says, what it writes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from condense.data.config import DataConfig
from condense.data.decoding import decode
from condense.data.sources import open_source
from condense.errors import CondenseError, FlowError
from condense.flow.bits import measure
from condense.flow.store import load_flow, save_flow
from condense.reports.console import histogram_lines
from condense.reports.measurement import HISTOGRAM, MAP, NUMBERS, SORTED, measure_named, write_measured
from condense.seeding import generator
from condense.synthetic.dataset import CondensedDataset, write_dataset
from tests.builders.commands import left, refused
from tests.builders.flows import DESCRIPTIONS, tiny_flow
from tests.conftest import Command

FILES = {NUMBERS, SORTED, HISTOGRAM, MAP}


def shades(count: int, side: int) -> torch.Tensor:
    """uint8 grey images of ever more noise."""
    noise = torch.rand((count, 1, side, side), generator=generator(0, "shades")) - 0.5
    return (128 + 250 * torch.linspace(0, 1, count)[:, None, None, None] * noise).to(torch.uint8)


def condensed(path: Path, images: torch.Tensor) -> Path:
    labels = torch.arange(len(images)) % 2
    return write_dataset(path, CondensedDataset(images, labels, ("even", "odd"), None, None))


def pictures_parquet(path: Path, images: torch.Tensor) -> Path:
    """A Parquet file of images and labels that is no condensed dataset."""
    encoded = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(stream, format="PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": encoded, "label": [row % 2 for row in range(len(images))]}), path)
    return path


def test_a_source_is_measured_as_the_flow_measures_its_images() -> None:
    found = measure_named("digits", limit=20, draws=2, seed=3)
    images = open_source("digits", DataConfig(), seed=3).load("train", limit=20).images
    expected = measure(load_flow("grey32"), images, seed=3, draws=2)
    assert torch.equal(found.data.images, images)
    assert torch.equal(found.report.bits_per_dim, expected.bits_per_dim)
    assert found.flow == "grey32"
    assert found.report.digest == expected.digest
    assert "digits under grey32" in found.title


def test_a_limit_draws_that_many_images_of_the_split_in_their_order() -> None:
    source = open_source("digits", DataConfig(), seed=0)
    whole, part = source.load("validation"), source.load("validation", limit=25)
    places = [int((whole.images == image).all((1, 2, 3)).nonzero()[0, 0]) for image in part.images]
    assert len(places) == 25
    assert places == sorted(places)
    assert torch.equal(whole.labels[places], part.labels)
    assert places != list(range(25))
    assert len(source.load("validation", limit=10_000).labels) == len(whole.labels)


def test_smaller_images_are_padded_to_the_flow_as_a_run_pads_them(tmp_path: Path) -> None:
    images = shades(24, 28)
    found = measure_named(f"parquet:{pictures_parquet(tmp_path / 'small.parquet', images)}", draws=1)
    inner = found.data.images[:, :, 2:30, 2:30]
    assert torch.equal(found.data.images, torch.nn.functional.pad(inner, (2, 2, 2, 2)))
    assert all(bool((images == image).all((1, 2, 3)).any()) for image in inner)


def test_a_condensed_set_of_another_size_is_padded_too(tmp_path: Path) -> None:
    images = shades(6, 28)
    found = measure_named(str(condensed(tmp_path / "data.parquet", images)), draws=1)
    assert torch.equal(found.data.images, torch.nn.functional.pad(images, (2, 2, 2, 2)))
    assert found.data.class_names == ("even", "odd")
    # The folder that holds it means the same.
    assert torch.equal(measure_named(str(tmp_path), draws=1).report.bits, found.report.bits)


def test_a_size_can_be_asked_for(tmp_path: Path) -> None:
    flow = tmp_path / "tiny.safetensors"
    save_flow(tiny_flow(DESCRIPTIONS["grey"]).float(), flow, {})
    assert measure_named("digits", flow=str(flow), limit=5, draws=1).data.images.shape[2:] == (16, 16)
    with pytest.raises(FlowError, match="24, 24"):
        measure_named("digits", data=DataConfig(image_size=24), limit=5)
    with pytest.raises(FlowError, match=r"\(5, 1, 32, 32\)"):
        measure_named("digits", flow=str(flow), data=DataConfig(image_size=32), limit=5)


@pytest.mark.parametrize("form", ["file", "folder of files", "folder of images"])
def test_a_bare_path_to_images_is_a_source(form: str, tmp_path: Path) -> None:
    images, place = shades(12, 32), tmp_path / "images"
    place.mkdir()
    if form == "folder of images":
        for row, image in enumerate(images):
            (place / str(row % 2)).mkdir(exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / str(row % 2) / f"{row}.png")
    else:
        file = pictures_parquet(place / "train.parquet", images)
        place = file if form == "file" else place
    found = measure_named(str(place), limit=6, draws=1)
    assert len(found.data.images) == 6


def test_maps_add_up_to_the_bits_of_their_images(tmp_path: Path) -> None:
    found = measure_named(str(condensed(tmp_path / "data.parquet", shades(6, 32))), draws=2)
    places = torch.tensor([4, 0])
    torch.testing.assert_close(found.maps(places).sum((1, 2)), found.report.bits[places], rtol=1e-5, atol=0.05)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """The folder that is written for eight images, and their bits per dim, which the order of the images is not."""
    folder = tmp_path_factory.mktemp("written")
    images = shades(8, 32)[torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])]
    found = measure_named(str(condensed(folder / "data.parquet", images)), draws=2)
    assert {path.name for path in write_measured(folder / "out", found)} == FILES
    return folder / "out", found.report.bits_per_dim


def test_each_image_has_a_row_with_its_numbers(written: tuple[Path, torch.Tensor]) -> None:
    folder, bits = written
    table = pq.read_table(folder / NUMBERS)
    rows = table.to_pydict()
    assert rows["bits_per_dim"] == bits.tolist()
    assert rows["bits"] == pytest.approx((bits * 1024).tolist())
    assert rows["label_name"] == ["even", "odd"] * 4
    assert all(error > 0 for error in rows["standard_error"])
    picture = decode(rows["image"][2]["bytes"], "row 2")
    assert picture.std() > 60  # the noisiest
    assert json.loads(table.schema.metadata[b"bits"])["draws"] == 2


def test_the_sorted_picture_goes_from_least_to_most_bits(written: tuple[Path, torch.Tensor]) -> None:
    folder, bits = written
    pixels = np.asarray(Image.open(folder / SORTED).convert("L")).astype(float)
    cells = [pixels[42:134, 12 + 106 * place : 100 + 106 * place] for place in range(8)]
    spreads = [cell.std() for cell in cells]
    assert spreads == sorted(spreads)
    assert torch.equal(bits.argsort(), torch.tensor([3, 1, 5, 0, 7, 4, 6, 2]))


def test_the_map_is_brighter_where_the_bits_are(tmp_path: Path) -> None:
    half = shades(2, 32)[1:].repeat(2, 1, 1, 1)
    half[:, :, :, :16] = 128
    found = measure_named(str(condensed(tmp_path / "data.parquet", half)), draws=1)
    write_measured(tmp_path / "out", found)
    pixels = np.asarray(Image.open(tmp_path / "out" / MAP).convert("L")).astype(float)
    smooth, noisy = pixels[44:130, 110:142], pixels[44:130, 170:200]
    assert noisy.mean() > smooth.mean() + 50


def test_the_terminal_histogram_counts_every_image() -> None:
    values = torch.rand(500, generator=generator(0, "values")).double() * 3
    lines = histogram_lines(values)
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == 500
    assert max(len(line) for line in lines) < 100
    assert histogram_lines(torch.full((4,), 2.5))[0].endswith(" 4")


def test_the_command_prints_a_table_and_writes_where_it_is_told(condense: Command, tmp_path: Path) -> None:
    shown = condense("bits", "digits", "--limit", 30, "-o", "out", "data.fit=resize")
    assert shown.code == 0, shown.err
    for part in ("digits under grey32", "all", "Monte-Carlo error", "PNG bytes per image", "images by bits per dim"):
        assert part in shown.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert f"wrote out/{MAP}" in shown.out


def test_without_a_folder_nothing_is_written(condense: Command, tmp_path: Path) -> None:
    shown = condense("bits", "digits", "--limit", 10, "--draws", 1)
    assert shown.code == 0, shown.err
    assert not list(tmp_path.iterdir())


BAD = {
    "an unknown name": (("nosuch",), ("nosuch", "sources: digits")),
    "an unknown split": (("digits", "--split", "dev"), ("dev", "train, validation, test")),
    "an unknown setting": (("digits", "data.image_siz=32"), ("data.image_siz", "did you mean 'image_size'?")),
    "a flow of other channels": (("digits", "--flow", "rgb32"), ("(N, 3, 32, 32)", "(500, 1, 32, 32)")),
    "a size without a flow": (("digits", "data.image_size=16"), ("(1, 16, 16)", "grey32")),
    "a folder that cannot be written": (("digits", "--limit", "5", "-o", "file/out"), ("file/out",)),
    "a truncated file": (("cut.parquet",), ("cut.parquet", "truncated")),
    "a missing file": (("absent.parquet",), ("absent.parquet",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, condense: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    whole = condensed(tmp_path / "cut.parquet", shades(4, 32)).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    arguments, named = BAD[case]
    refused(condense("bits", *arguments), *named)
    assert not left(tmp_path)


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = measure_named("digits", limit=4, draws=1)
    with pytest.raises(CondenseError, match="cannot be written"):
        write_measured(tmp_path / "file" / "out", found)
