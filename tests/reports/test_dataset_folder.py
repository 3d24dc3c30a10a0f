"""The dataset's folder: its card, its figures, and that what the card says about loading is true."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from condense.errors import OutputError
from condense.reports.card import card
from condense.reports.dataset_folder import write_folder
from condense.reports.figures import bits_figure, preview
from condense.synthetic.dataset import CondensedDataset, read_dataset


def provenance() -> dict[str, Any]:
    return {
        "config": {"source": "digits", "images_per_class": 2, "data": {"image_size": 8}},
        "seed": 3,
        "versions": {"condense": "0.1.0", "torch": "2.15.0"},
        "git_revision": "abc123",
        "source": {"name": "digits", "digest": "5" * 64, "shape": [1, 8, 8]},
        "flow": {"name": "grey32", "digest": "f" * 64},
        "value_range": [0, 255],
        "normalisation": {"mean": [0.25], "std": [0.5]},
        "decoder": {"factor": 1},
        "evaluation": {
            "recipe": "dc",
            "learners": 5,
            "accuracy_mean": 71.26,
            "accuracy_std": 0.84,
            "network": {"name": "convnet", "width": 128},
        },
        "validation": {"accuracy_mean": 70.0},
        "controls": {
            "random_real": {"accuracy_mean": 50.0, "accuracy_std": 2.0, "bits_per_dim": 3.5},
            "jpeg_real": {"accuracy_mean": 41.0, "accuracy_std": 1.0, "bits_per_dim": 1.5, "quality": 7},
            "blurred_real": {
                "accuracy_mean": 40.0,
                "accuracy_std": None,
                "bits_per_dim": 2.5,
                "sigma": 3.0,
                "at_equal_bits": False,
            },
        },
        "bits": {"per_dim_before": 3.5, "per_dim_after": 1.5, "per_set": 576.0, "png_bytes": 12345},
        "outer_steps": 100,
        "seconds": 61.5,
    }


def make_dataset(**changes: Any) -> CondensedDataset:
    numbers = torch.Generator().manual_seed(0)
    dataset = CondensedDataset(
        images=torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=numbers),
        labels=torch.tensor([0, 1, 2, 0, 1, 2]),
        class_names=("zero", "o|ne", "`two`"),
        bits=torch.full((6,), 96.0, dtype=torch.float64),
        bits_per_dim=torch.full((6,), 1.5, dtype=torch.float64),
        provenance=provenance(),
    )
    return dataclasses.replace(dataset, **changes)


def test_a_folder_holds_the_dataset_its_card_and_two_figures(tmp_path: Path) -> None:
    dataset = make_dataset()
    folder = write_folder(tmp_path / "condensed" / "digits-ipc2", dataset)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "bits.png", "data.parquet", "preview.png"]
    assert torch.equal(read_dataset(folder / "data.parquet").images, dataset.images)
    assert "# digits-ipc2\n" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_the_loading_code_of_the_card_runs_as_it_stands(tmp_path: Path) -> None:
    dataset = make_dataset()
    folder = write_folder(tmp_path / "digits", dataset)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    check = """
assert dataset.column_names == ["image", "label", "label_name", "bits", "bits_per_dim"], dataset.column_names
assert [dataset.features["label"].int2str(label) for label in dataset["label"][:2]] == ["zero", "o|ne"]
torch.save({"images": images, "labels": labels, "first": torch.tensor(list(dataset[0]["image"].getdata()))}, "out.pt")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", "\n".join([*blocks, check])], check=True, cwd=tmp_path, env=environment)
    loaded = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(loaded["images"], (dataset.images / 255 - 0.25) / 0.5)
    assert torch.equal(loaded["labels"], dataset.labels)
    assert torch.equal(loaded["first"], dataset.images[0].flatten().long())


def test_the_card_states_accuracy_with_spread_recipe_learners_and_controls() -> None:
    text = card(make_dataset(), "digits")
    assert "| **this dataset** | 71.3 ± 0.8 | 1.50 |" in text
    assert "| random real images | 50.0 ± 2.0 | 3.50 |" in text
    assert "| the random real images as JPEG, quality 7 | 41.0 ± 1.0 | 1.50 |" in text
    assert "| the random real images, blurred, sigma 3.00 | 40.0 | 2.50, not reachable |" in text
    assert "k-means" not in text
    assert "5 freshly initialised networks (name convnet, width 128), recipe `dc`" in text
    assert "Accuracy on the validation split: 70.0 %." in text
    assert "| bits per dim, real images | 3.50 |" in text
    assert "| bits of the whole set | 576 |" in text
    assert "| PNG bytes of the whole set | 12,345 |" in text


def test_the_card_counts_soft_labels_as_bits_and_loads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = torch.full((6, 3), 1 / 3)
    folder = write_folder(tmp_path / "digits", make_dataset(soft_labels=soft))
    text = (folder / "README.md").read_text()
    assert "| bits of the whole set | 720 |" in text  # 6 images of 96 bits, 6 labels of three bytes
    assert "| bits of its soft labels, 8 for each class and image | 144 |" in text
    monkeypatch.chdir(tmp_path)
    loaded: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[1], loaded)
    assert torch.equal(loaded["labels"], soft)
    assert "soft labels" not in card(make_dataset(), "digits")


def test_the_header_of_the_card_points_at_the_parquet_file() -> None:
    header = yaml.safe_load(card(make_dataset(), "digits").split("---")[1])
    assert header["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data.parquet"}]}]
    assert header["size_categories"] == ["n<1K"]


def test_the_configuration_in_the_card_reads_back() -> None:
    config = re.search(r"```yaml\n(.*?)```", card(make_dataset(), "digits"), re.S)
    assert config is not None
    assert yaml.safe_load(config[1]) == provenance()["config"]


def test_class_names_cannot_break_a_table_or_open_code() -> None:
    assert "Classes: zero, o\\|ne, 'two'." in card(make_dataset(), "digits")


@pytest.mark.parametrize("kept", [[], ["evaluation"], ["bits"], ["flow", "source"], ["controls", "config"]])
def test_a_card_of_a_dataset_with_little_provenance_has_no_holes(kept: list[str]) -> None:
    text = card(make_dataset(provenance={key: provenance()[key] for key in kept}), "digits")
    assert not re.search(r"\bNone\b|\bnan\b|\{|\| \|$", text.split("```")[0])
    assert not re.search(r"\bNone\b|\bnan\b", text)
    assert "## Loading" in text


def test_a_card_of_a_run_without_a_flow_speaks_of_png_bytes_alone(tmp_path: Path) -> None:
    bits = {"per_dim_before": None, "per_dim_after": None, "per_set": None, "png_bytes": 12345}
    facts = {**provenance(), "flow": None, "bits": bits}
    dataset = make_dataset(bits=None, bits_per_dim=None, provenance=facts)
    folder = write_folder(tmp_path / "digits", dataset)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "data.parquet", "preview.png"]
    text = card(dataset, "digits")
    assert "| **this dataset** | 71.3 ± 0.8 | - |" in text
    assert "| PNG bytes of the whole set | 12,345 |" in text
    assert "bits of the whole set" not in text
    assert "bits.png" not in text
    assert "code length" not in text


def test_the_preview_shows_the_images_sorted_by_class() -> None:
    picture = Image.open(io.BytesIO(preview(make_dataset())))
    shown = torch.tensor(list(picture.convert("L").get_flattened_data())).view(picture.height, picture.width)
    dataset = make_dataset()
    cell = (picture.width - 2) // 2
    corners = [int(shown[2 + row * cell, 2 + column * cell]) for row in range(3) for column in range(2)]
    assert corners == [int(dataset.images[index, 0, 0, 0]) for index in (0, 3, 1, 4, 2, 5)]


@pytest.mark.parametrize("classes", [1, 3, 100])
def test_the_figure_of_bits_is_drawn_for_any_class_count_and_is_the_same_twice(classes: int) -> None:
    dataset = make_dataset(
        images=torch.zeros(classes, 3, 8, 8, dtype=torch.uint8),
        labels=torch.arange(classes),
        class_names=tuple(f"class {index}" for index in range(classes)),
        bits=torch.ones(classes, dtype=torch.float64),
        bits_per_dim=torch.ones(classes, dtype=torch.float64),
    )
    first = bits_figure(dataset)
    assert first == bits_figure(dataset)
    assert Image.open(io.BytesIO(first)).width > 300


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_folder(tmp_path / "file" / "digits", make_dataset())
