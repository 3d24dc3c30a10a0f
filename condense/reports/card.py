"""Writes the card of a condensed dataset: what it is, how accurate, how simple, how it is loaded and made again.

The card is Markdown under a YAML header as Hugging Face reads it. The header stays hand-written: it is one dictionary,
and huggingface_hub, which has a class for it, would be a dependency for eight lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from condense.synthetic.dataset import PARQUET, CondensedDataset, content_digest
from condense.synthetic.soft_labels import label_bits

PREVIEW = "preview.png"  # the pictures beside the card, which shows them
BITS = "bits.png"

CONTROLS = {
    "random_real": "random real images",
    "kmeans_real": "real images chosen by k-means",
    "jpeg_real": "the random real images as JPEG",
    "blurred_real": "the random real images, blurred",
}
MISSING = "-"
NAMED_CLASSES = 50  # more class names than this do not fit into a sentence


def card(dataset: CondensedDataset, name: str) -> str:
    """Returns the card, Markdown under a Hugging Face header that names the Parquet file as the train split.

    Args:
        dataset: its provenance fills the card; keys that are missing are left out.
        name: of the dataset, and of the folder in the loading code.
    """
    about = dataset.provenance
    parts = [
        _header(name, len(dataset.labels)),
        f"# {name}\n\n{_summary(dataset)}",
        f"![Every image of the set]({PREVIEW})",
        _accuracy(dataset),
        _simplicity(dataset),
        _loading(dataset, name),
        _provenance(dataset),
        _limits(about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(name: str, count: int) -> str:
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    header = {
        "pretty_name": name,
        "task_categories": ["image-classification"],
        "tags": ["dataset-condensation", "synthetic"],
        "size_categories": [next((label for limit, label in sizes if count < limit), "n>100K")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"


def _summary(dataset: CondensedDataset) -> str:
    count, channels, height, width = dataset.images.shape
    evaluation = _part(dataset.provenance, "evaluation")
    source = _part(dataset.provenance, "source").get("name")
    kinds = len(dataset.class_names)
    text = f"{count} synthetic images ({channels} x {height} x {width}, 8-bit) of {kinds} classes"
    text += f", condensed from `{source}`." if source else "."
    if "accuracy_mean" in evaluation:
        text += f" Networks trained on these images alone reach {_percent(evaluation)} test accuracy."
    if kinds <= NAMED_CLASSES:
        text += f" Classes: {', '.join(_cell(name) for name in dataset.class_names)}."
    return text


def strength(control: Mapping[str, Any]) -> str:
    """Returns how strongly a control was degraded for its bits, in words; nothing of one that was not."""
    words = {"quality": "quality {:.0f}", "sigma": "sigma {:.2f}"}
    return next((words[key].format(control[key]) for key in words if key in control), "")


def control_bits(control: Mapping[str, Any]) -> str:
    """Returns a control's bits per dim; where they were to be the set's, and are not, it says so."""
    missed = ", not reachable" if control.get("at_equal_bits") is False else ""
    return _number(control.get("bits_per_dim"), 2) + missed


def _title(key: str, control: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (CONTROLS[key], strength(control)) if part)


def _accuracy(dataset: CondensedDataset) -> str:
    evaluation = _part(dataset.provenance, "evaluation")
    controls = _part(dataset.provenance, "controls")
    if "accuracy_mean" not in evaluation:
        chosen = _part(dataset.provenance, "validation").get("accuracy_mean")
        if chosen is None:
            return ""
        return f"## Accuracy\n\nAccuracy on the validation split: {chosen:.1f} %. The test split was not read."
    ours = {**evaluation, "bits_per_dim": _mean_bits(dataset)}
    rows = [("**this dataset**", ours)]
    rows += [(_title(key, controls[key]), controls[key]) for key in CONTROLS if key in controls]
    rows += [(_cell(key), control) for key, control in controls.items() if key not in CONTROLS]
    table = _table(
        ("trained on", "test accuracy (%)", "bits per dim"),
        ((title, _percent(row, unit=""), control_bits(row)) for title, row in rows),
    )
    learners = evaluation.get("learners")
    recipe = (
        "One freshly initialised network, so no spread is known"
        if learners == 1
        else f"Mean ± standard deviation over {_count(learners, 'freshly initialised network')}"
    )
    network = evaluation.get("network")
    if isinstance(network, Mapping):
        network = ", ".join(f"{key} {value}" for key, value in network.items())
    recipe += f" ({network})" if network else ""
    recipe += f", recipe `{evaluation['recipe']}`" if "recipe" in evaluation else ""
    recipe += "; the controls have as many images and the same recipe" if controls else ""
    recipe += ". The test split was read once, at the end."
    validation = _part(dataset.provenance, "validation").get("accuracy_mean")
    recipe += f" Accuracy on the validation split: {validation:.1f} %." if validation is not None else ""
    return f"## Accuracy\n\n{table}\n\n{recipe}"


def _simplicity(dataset: CondensedDataset) -> str:
    bits = _part(dataset.provenance, "bits")
    flow = _part(dataset.provenance, "flow")
    labels = label_bits(dataset.soft_labels)
    rows = [
        ("bits per dim, real images", _number(bits.get("per_dim_before"), 2)),
        ("bits per dim, this dataset", _number(_mean_bits(dataset), 2)),
        ("bits of the whole set", _number(None if dataset.bits is None else float(dataset.bits.sum()) + labels, 0)),
        ("bits of its soft labels, 8 for each class and image", _number(labels or None, 0)),
        ("PNG bytes of the whole set", _number(bits.get("png_bytes"), 0)),
    ]
    by = f"Bits are code lengths under the flow `{flow['name']}`" if "name" in flow else ""
    by += f" (digest `{str(flow['digest'])[:12]}`)" if by and "digest" in flow else ""
    by += "; bits under another flow are another scale." if by else ""
    table = _table(("size", ""), (row for row in rows if row[1] != MISSING))
    figure = "" if dataset.bits_per_dim is None else f"![Bits per dim by class]({BITS})"
    return "\n\n".join(part for part in ("## Simplicity", table, by, figure) if part)


def _loading(dataset: CondensedDataset, name: str) -> str:
    stated = dataset.provenance.get("normalisation")
    labels, note = (
        ("label", "") if dataset.soft_labels is None else ("soft_label", "  # (images, classes): distributions")
    )
    normalise = ""
    if stated:
        mean, std = ([round(float(value), 6) for value in stated[key]] for key in ("mean", "std"))
        normalise = (
            f"\nmean, std = torch.tensor({mean}), torch.tensor({std})"
            "\nimages = (images / 255 - mean[:, None, None]) / std[:, None, None]  # what the networks above saw"
        )
    return f"""## Loading

With `{name}` the path to this folder. Hugging Face `datasets`:

```python
from datasets import load_dataset

dataset = load_dataset("./{name}", split="train")
print(dataset[0]["image"], dataset.features["label"].int2str(dataset[0]["label"]))
```

PyTorch:

```python
import pyarrow.parquet, torch
from torchvision.io import decode_image

rows = pyarrow.parquet.read_table("{name}/{PARQUET}").to_pydict()
images = torch.stack([decode_image(torch.tensor(list(i["bytes"]), dtype=torch.uint8)) for i in rows["image"]])
labels = torch.tensor(rows["{labels}"]){note}{normalise}
```"""


def _provenance(dataset: CondensedDataset) -> str:
    about = dataset.provenance
    source, flow = _part(about, "source"), _part(about, "flow")
    digest = content_digest(dataset.images, dataset.labels, dataset.class_names, dataset.soft_labels)
    rows = [
        ("content digest", digest),
        ("source", source.get("name")),
        ("source digest", source.get("digest")),
        ("flow digest", flow.get("digest")),
        ("seed", about.get("seed")),
        ("outer steps", about.get("outer_steps")),
        ("seconds", _number(about.get("seconds"), 0)),
        ("git revision", about.get("git_revision")),
        ("decoder", ", ".join(f"{key} {value}" for key, value in _part(about, "decoder").items())),
        ("versions", ", ".join(f"{key} {value}" for key, value in _part(about, "versions").items())),
    ]
    table = _table(
        ("", ""), ((key, f"`{_cell(value)}`") for key, value in rows if value not in (None, "", MISSING)), align="---"
    )
    if "config" not in about:
        return f"## Provenance\n\n{table}"
    config = yaml.safe_dump(about["config"], sort_keys=False, allow_unicode=True)
    again = "The run's configuration, from which `condense run` makes it again:"
    return f"## Provenance\n\n{table}\n\n{again}\n\n```yaml\n{config}```"


def _limits(about: Mapping[str, Any]) -> str:
    lines = [
        "The accuracy holds for the network and recipe named above; others may reach less.",
        "The images are made to train on: they are no samples of the source, and no fair picture of it.",
        "What the source leaves out or gets wrong, this dataset does too.",
        "What it may be used for depends on the source's licence.",
    ]
    if about.get("flow"):
        lines.append("Bits are a model's code length, not bytes on disk; the PNG bytes stand beside them.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _mean_bits(dataset: CondensedDataset) -> float | None:
    return None if dataset.bits_per_dim is None else float(dataset.bits_per_dim.mean())


def _part(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns a part of the provenance; empty where the run had none."""
    return about.get(key) or {}


def _percent(accuracy: Mapping[str, Any], unit: str = " %") -> str:
    """Returns mean ± std, both percent."""
    if accuracy.get("accuracy_mean") is None:
        return MISSING
    deviation = None if accuracy.get("learners") == 1 else accuracy.get("accuracy_std")
    return spread(accuracy["accuracy_mean"], deviation) + unit


def spread(mean: float, deviation: float | None, *, places: int = 1) -> str:
    """Returns mean ± standard deviation; the mean alone where one learner leaves nothing to spread."""
    return f"{mean:.{places}f}" + ("" if deviation is None else f" ± {deviation:.{places}f}")


def _number(value: float | None, places: int) -> str:
    return MISSING if value is None else f"{value:,.{places}f}"


def _count(count: int | None, what: str) -> str:
    return f"{'several' if count is None else count} {what}{'' if count == 1 else 's'}"


def _cell(value: object) -> str:
    """Returns text that stays inside its table cell."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("`", "'")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, align: str = "---:") -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---", *(align for _ in lines[0][1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
