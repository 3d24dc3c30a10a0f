"""The command line: help without weight, runs that repeat, and bad input told in one message."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image

from condense.cli import app as cli
from condense.condensation.config import RunConfig
from condense.condensation.in_process import run_name
from condense.errors import ConfigError
from condense.flow.architecture import FlowDescription
from condense.flow.registry import build
from condense.flow.store import save_flow
from condense.settings import resolve
from condense.synthetic.dataset import read_dataset
from condense.workers.checkpoints import Checkpoint, write
from condense.workers.storage import file_name
from tests.builders.commands import left, refused
from tests.conftest import QUICKSTART, ROOT, TINY, Command, Outcome, condense_in

HEAVY = ("torch", "pyarrow", "ray", "mlflow")


def commands() -> Iterator[tuple[str, ...]]:
    todo: list[tuple[tuple[str, ...], object]] = [((), typer.main.get_command(cli.app))]
    while todo:
        path, command = todo.pop()
        yield path
        todo += [((*path, name), inner) for name, inner in getattr(command, "commands", {}).items()]


@pytest.mark.parametrize("path", sorted(commands()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], condense: Command) -> None:
    shown = condense(*path, "--help")
    assert shown.code == 0
    assert shown.err == ""
    assert f"Usage: condense {' '.join(path)}".rstrip() in shown.out


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('loaded', sorted(set({HEAVY}) & set(sys.modules))))\n"
        "from condense.cli.app import main\n"
        "main()"
    )
    shown = subprocess.run([sys.executable, "-c", program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[-1] == "loaded []"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the one run that the tests below look at."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def tiny(home: Path) -> Outcome:
    """A run of seconds."""
    return condense_in(home, "run", QUICKSTART, *TINY)


def test_a_run_says_where_its_dataset_is_and_keeps_no_checkpoint(tiny: Outcome, home: Path) -> None:
    assert tiny.code == 0, tiny.err
    assert tiny.err == ""
    assert len(read_dataset(home / tiny.dataset).images) == 10
    assert not list((home / "runs").rglob("*.safetensors"))


def test_the_same_run_twice_has_the_same_content(tiny: Outcome, home: Path, condense: Command, tmp_path: Path) -> None:
    again = condense("run", QUICKSTART, *TINY)
    written = [read_dataset(home / tiny.dataset), read_dataset(tmp_path / again.dataset)]
    first, second = (dataset.provenance["content_digest"] for dataset in written)
    assert first == second


def test_a_run_without_a_c_compiler_works_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = "from condense.cli.app import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "run", QUICKSTART, *TINY],
        cwd=tmp_path,
        env=os.environ | {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "no gcc or clang" in ended.stderr
    (file,) = (tmp_path / "condensed").rglob("data.parquet")
    assert len(read_dataset(file).images) == 10


@pytest.mark.mlflow
def test_a_printed_command_works_as_it_is_printed_where_paths_hold_spaces(condense: Command) -> None:
    store = "tracking_uri=sqlite:///a store/mlflow.db"
    made = condense("run", QUICKSTART, *TINY[:1], *TINY[2:], "output=my sets", store)
    printed = dict(line.split(maxsplit=1) for line in made.out.splitlines() if " condense " in line)
    for name, told in (("again", "test accuracy"), ("download", "digits-ipc1-1")):
        program, *arguments = shlex.split(printed[name])
        assert program == "condense"
        outcome = condense(*arguments)
        assert outcome.code == 0, outcome.err
        assert told in outcome.out


def test_evaluating_a_file_reproduces_its_accuracy_exactly(tiny: Outcome, home: Path, condense: Command) -> None:
    found = condense("evaluate", home / tiny.dataset)
    assert found.code == 0, found.err
    stated = read_dataset(home / tiny.dataset).provenance["evaluation"]["accuracy_mean"]
    assert f"test accuracy {stated:.2f}" in found.out
    assert "reproduced exactly" in found.out


def png(seed: int, *, size: int = 16, mode: str = "L") -> bytes:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, format="PNG")
    return buffer.getvalue()


def parquet(path: Path, images: Sequence[bytes], labels: Sequence[int]) -> Path:
    """Images and labels with nothing said about classes."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": data, "path": None} for data in images], kind)
    pq.write_table(pa.table({"image": pictures, "label": pa.array(labels, pa.int64())}), path)
    return path


TWO_CLASSES = [0] * 8 + [1] * 8


def test_a_missing_config_file(condense: Command, tmp_path: Path) -> None:
    refused(condense("run", "absent.yaml"), "absent.yaml")
    assert not left(tmp_path)


def test_a_missing_data_file(condense: Command, tmp_path: Path) -> None:
    refused(condense("run", QUICKSTART, *TINY, "source=parquet:absent.parquet"), "absent.parquet")
    assert not left(tmp_path)


BAD_IMAGES = {
    "unreadable": (b"no picture", (), "row 12"),
    "transparency": (png(12, mode="RGBA"), (), "row 12", "not opaque"),
    "another channel count": (png(12, mode="RGB"), (), "row 12", "3 channels"),
    "mixed sizes": (png(12, size=24), ("data.image_size=null",), "row 12", "data.image_size"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image(case: str, condense: Command, tmp_path: Path) -> None:
    bad, overrides, *named = BAD_IMAGES[case]
    images = [png(row) for row in range(12)] + [bad] + [png(row) for row in range(13, 16)]  # row 12 is for training
    path = parquet(tmp_path / "bad.parquet", images, TWO_CLASSES)
    refused(condense("run", QUICKSTART, *TINY, *overrides, f"source=parquet:{path}"), "bad.parquet", *named)
    assert not left(tmp_path)


def test_a_label_out_of_range(condense: Command, tmp_path: Path) -> None:
    path = parquet(tmp_path / "bad.parquet", [png(row) for row in range(16)], [*TWO_CLASSES[:15], -3])
    refused(condense("run", QUICKSTART, *TINY, f"source=parquet:{path}"), "bad.parquet", "row 15", "-3")
    assert not left(tmp_path)


def test_a_class_with_fewer_images_than_asked_for(condense: Command, tmp_path: Path) -> None:
    path = parquet(tmp_path / "small.parquet", [png(row) for row in range(16)], TWO_CLASSES)
    outcome = condense("run", QUICKSTART, *TINY, f"source=parquet:{path}", "images_per_class=8")
    refused(outcome, "class '0'", "images_per_class=8")
    assert not left(tmp_path)


def test_a_class_too_small_for_a_validation_split(condense: Command, tmp_path: Path) -> None:
    path = parquet(tmp_path / "small.parquet", [png(row) for row in range(16)], [*[0] * 15, 1])
    refused(condense("run", QUICKSTART, *TINY, f"source=parquet:{path}"), "class '1'", "validation")
    assert not left(tmp_path)


BAD_SETTINGS = {
    "image_per_class=2": ("image_per_class", "did you mean 'images_per_class'?"),
    "data.imagesize=8": ("data.imagesize", "did you mean 'image_size'?"),
    "bits_weight=-1": ("bits_weight", "-1"),
    "bits_weight=.nan": ("bits_weight",),
    "objective=telepathy": ("objective", "telepathy", "gradient"),
    "source=fashionmnst": ("fashionmnst", "did you mean fashion-mnist"),
    "images_per_class": ("images_per_class", "key=value"),
    "workers=11": ("11 workers", "10 classes"),
    "flow=absent.safetensors": ("absent.safetensors",),
}


@pytest.mark.parametrize("override", BAD_SETTINGS)
def test_a_bad_setting(override: str, condense: Command, tmp_path: Path) -> None:
    refused(condense("run", QUICKSTART, *TINY, override), *BAD_SETTINGS[override])
    assert not left(tmp_path)


def test_a_flow_of_another_shape(condense: Command, tmp_path: Path) -> None:
    description = FlowDescription(channels=3, image_size=16, levels=2, steps=1, hidden=8, components=1)
    save_flow(build(description), tmp_path / "colour.safetensors", {})
    outcome = condense("run", QUICKSTART, *TINY, "flow=colour.safetensors")
    refused(outcome, "colour.safetensors", "(3, 16, 16)", "(1, 16, 16)")
    assert not left(tmp_path)


def test_an_output_folder_that_cannot_be_written(condense: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(condense("run", QUICKSTART, *TINY, "output=file/condensed"), "file/condensed", "output=")
    assert not left(tmp_path)


@pytest.mark.parametrize("kept", [0.5, 0.0], ids=["half of it", "nothing of it"])
def test_a_truncated_checkpoint(kept: float, condense: Command, tmp_path: Path) -> None:
    config = resolve(RunConfig, QUICKSTART, TINY)
    path = tmp_path / config.storage / run_name(config) / file_name(1)
    write(Checkpoint(1, config.identity(), {"alpha": torch.zeros(10, 1, 1, 16, 16)}, {}), path)
    os.truncate(path, int(kept * path.stat().st_size))
    refused(condense("run", QUICKSTART, *TINY), str(path.relative_to(tmp_path)), "delete it")
    assert not left(tmp_path)


@pytest.mark.mlflow
def test_an_unreachable_tracking_server(condense: Command, tmp_path: Path) -> None:
    outcome = condense("run", QUICKSTART, *TINY, "tracking_uri=http://127.0.0.1:1")
    refused(outcome, "http://127.0.0.1:1")
    assert not left(tmp_path)


def test_a_condensed_file_that_is_none(condense: Command, tmp_path: Path) -> None:
    path = parquet(tmp_path / "real.parquet", [png(row) for row in range(16)], TWO_CLASSES)
    refused(condense("evaluate", path), "real.parquet", "not a condensed dataset")
    refused(condense("evaluate", "absent.parquet"), "absent.parquet")


@pytest.mark.parametrize("line", ["--debug run absent.yaml", "run --debug absent.yaml", "run absent.yaml --debug"])
def test_debug_anywhere_shows_where_an_error_came_from(condense: Command, line: str) -> None:
    with pytest.raises(ConfigError):
        condense(*line.split())


def test_an_error_of_the_installed_command_is_one_message_and_exit_code_two(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("condense")
    ended = subprocess.run([command, "run", "absent.yaml"], cwd=tmp_path, capture_output=True, text=True)
    refused(Outcome(ended.returncode, ended.stdout, ended.stderr), "absent.yaml")
    assert ended.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("evaluate",), ("bits",), ("datasets", "show"), ("datasets", "download")])
def test_help_shows_how_a_registered_dataset_is_named(condense: Command, words: tuple[str, ...]) -> None:
    assert "NAME[@alias|/version]" in "".join(condense(*words, "--help").out.split())


@pytest.mark.parametrize("path", sorted(commands()), ids=" ".join)
def test_help_shows_every_character_of_its_texts(path: tuple[str, ...], condense: Command) -> None:
    def plain(text: str | None) -> str:
        return re.sub(r"[\s│]", "", (text or "").replace("\\[", "["))

    command: Any = typer.main.get_command(cli.app)
    for word in path:
        command = command.commands[word]
    shown = plain(condense(*path, "--help").out)
    texts = [command.help, *(parameter.help for parameter in command.params if parameter.name != "help")]
    texts += [parameter.metavar for parameter in command.params]
    assert [text for text in texts if plain(text) not in shown] == []


def test_a_name_with_brackets_and_colons_is_shown_as_it_is(condense: Command, tmp_path: Path) -> None:
    made = condense("run", QUICKSTART, *TINY, "output=x[bold]:cat:y")
    assert made.out.splitlines()[-2].startswith("dataset  x[bold]:cat:y/digits-ipc1-")
    assert (tmp_path / made.dataset).is_file()
    refused(condense("run", "[red]none.yaml"), "[red]none.yaml")
