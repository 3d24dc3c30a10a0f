"""Writes a condensed dataset as one Parquet file, one row for each image, and reads it back, bit for bit.

Columns: image struct<bytes, path> (PNG; pixels are 8-bit, so it is exact), label int64, label_name string, bits and
bits_per_dim float64, and soft_label list<float> where soft labels were learned. Three keys of schema metadata:
`huggingface` lets `datasets` show pictures and class names, `condense` holds the provenance as JSON, and
`condense_checksum` covers what the content digest leaves out. Hugging Face's declaration counts only for fields that
equal it exactly, so every field is nullable.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from condense.data.decoding import Frame, decode, encode_png, framed_shape, stack
from condense.errors import DatasetError, NonFiniteError, SourceError, reason_of
from condense.files import json_checksum, write_whole
from condense.pixels import to_float
from condense.synthetic.decoder import decode_set

FORMAT = 1
CHECKSUM = "condense_checksum"  # key of schema metadata: of what the content digest leaves out
PARQUET = "data.parquet"  # in the folder of a run
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


@dataclass(frozen=True)
class CondensedDataset:
    """A condensed dataset and where it came from.

    Attributes:
        images: uint8 (N, C, H, W), C one or three, as stored (see `decoded`).
        labels: int64 (N,).
        class_names: one for each label value.
        bits: float64 (N,), code length of each image under the flow; None where no flow measures its shape.
        bits_per_dim: float64 (N,), bits / (C H W); None likewise.
        soft_labels: float32 (N, classes), what learners are taught where they were learned; or None.
        provenance: plain values: config, seed, versions, git_revision, source, flow, value_range, normalisation
            {"mean": [C], "std": [C]} for images in [0, 1], decoder, evaluation, bits. Writing adds format, class_names
            and content_digest.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    bits: Tensor | None
    bits_per_dim: Tensor | None
    soft_labels: Tensor | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Returns what learners are trained on: uint8 (M, C, H, W), and labels (M,) or soft labels (M, classes).

        A canvas of factor f is f^2 images, which share its label.
        """
        factor = int(self.provenance.get("decoder", {}).get("factor", 1))
        labels = self.labels if self.soft_labels is None else self.soft_labels
        return decode_set(self.images, labels, factor)


def content_digest(
    images: Tensor, labels: Tensor, class_names: Sequence[str], soft_labels: Tensor | None = None
) -> str:
    """Digests what a learner sees by SHA-256: shapes, class names and tensor bytes; not the file, which varies by
    writer.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        class_names: one per label value.
        soft_labels: (N, classes) or None; digested as float32.
    """
    soft_shape = None if soft_labels is None else list(soft_labels.shape)
    header = json.dumps([list(images.shape), list(class_names), soft_shape], separators=(",", ":"))
    digest = hashlib.sha256(header.encode())
    digest.update(images.cpu().contiguous().numpy().astype("u1").tobytes())
    digest.update(labels.cpu().numpy().astype("<i8").tobytes())
    if soft_labels is not None:
        digest.update(soft_labels.cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def write_dataset(path: str | Path, dataset: CondensedDataset) -> Path:
    """Writes a condensed dataset to `path`, whole or not at all, and returns the path.

    Raises:
        DatasetError: a label without a class name.
        NonFiniteError: bits or soft labels that are not finite.
        OutputError: the folder or file cannot be written.
    """
    path = Path(path)
    for name in ("bits", "bits_per_dim", "soft_labels"):
        values = getattr(dataset, name)
        if values is not None and not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).nonzero()[0, 0])
            raise NonFiniteError(f"{path}: {name} of image {row} is not finite", "nothing was written")
    wrong = (dataset.labels < 0) | (dataset.labels >= len(dataset.class_names))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise DatasetError(f"{path}: label {int(dataset.labels[row])} of image {row} names none of the classes")
    digest = content_digest(dataset.images, dataset.labels, dataset.class_names, dataset.soft_labels)
    names = list(dataset.class_names)
    provenance = {**dataset.provenance, "format": FORMAT, "class_names": names, "content_digest": digest}
    table = _table(dataset).replace_schema_metadata(
        {
            "huggingface": json.dumps(_features(dataset)),
            "condense": json.dumps(provenance, allow_nan=False),
            CHECKSUM: _checksum(provenance, dataset),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", use_dictionary=["label", "label_name"])
    return write_whole(path, stream.getvalue())


def read_dataset(path: str | Path) -> CondensedDataset:
    """Reads the condensed dataset in a file that `write_dataset` wrote.

    Raises:
        DatasetError: no file, not a Parquet file or a truncated one, not a condensed dataset, a damaged image, or
            content that does not have the digest it was written with.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path} does not exist", "give the Parquet file that a run wrote")
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path}: not a readable Parquet file: {reason_of(error)}", "it may be truncated: copy it again"
        ) from None
    provenance = _provenance(table, path)
    try:
        dataset = _dataset(table, provenance, path)
    except SourceError as error:
        raise DatasetError(error.problem, "the file is damaged: copy it again") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: a column is not as it was written: {error}", "copy the file again") from None
    digest = content_digest(dataset.images, dataset.labels, dataset.class_names, dataset.soft_labels)
    if digest != provenance.get("content_digest"):
        raise DatasetError(
            f"{path}: content digest {digest}, but it was written with {provenance.get('content_digest')}",
            "its images, labels or class names were changed after it was written: download it again",
        )
    stated = table.schema.metadata.get(CHECKSUM.encode())  # files of version 0.1.0 have none
    if stated not in (None, _checksum(provenance, dataset).encode()):
        raise DatasetError(f"{path}: its facts or bits are not as they were written", "copy the file again")
    return dataset


def _checksum(provenance: Mapping[str, Any], dataset: CondensedDataset) -> str:
    """SHA-256 of what the content digest leaves out: how the dataset was made, and the bits of its images."""
    bits = (
        values.double().cpu().numpy().tobytes() for values in (dataset.bits, dataset.bits_per_dim) if values is not None
    )
    return json_checksum(provenance, *bits)


class CondensedImages(Dataset[tuple[Any, int | Tensor]]):
    """A condensed dataset for `torch.utils.data.DataLoader`: (image, label) pairs, canvases decoded.

    A label is a class or, where soft ones were learned, float32 (classes,): `cross_entropy` takes either. `targets` are
    the classes that the images were made for.

    Args:
        path: the Parquet file.
        transform: a torchvision transform of the PIL image; without one, images are float (C, H, W).
        normalise: subtract the mean and divide by the deviation that the learners of the file's evaluation saw;
            without it, images are in [0, 1]. Not with a transform.

    Raises:
        DatasetError: as `read_dataset`; or `normalise` for a file that states no normalisation.
    """

    def __init__(
        self, path: str | Path, transform: Callable[[Image.Image], Any] | None = None, *, normalise: bool = False
    ) -> None:
        self.dataset = read_dataset(path)
        self.classes = list(self.dataset.class_names)
        self._pictures, labels = self.dataset.decoded()
        per_row = len(labels) // len(self.dataset.labels)
        self.targets: list[int] = self.dataset.labels.repeat_interleave(per_row).tolist()
        self._labels: Sequence[int] | Tensor = self.targets if self.dataset.soft_labels is None else labels
        self.transform = transform
        self._images = to_float(self._pictures)
        if normalise:
            stated = self.dataset.provenance.get("normalisation")
            if not stated:
                raise DatasetError(f"{path} states no normalisation", "leave normalise out and normalise yourself")
            mean, std = (torch.tensor(stated[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
            self._images = (self._images - mean) / std

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int | Tensor]:
        if self.transform is None:
            return self._images[index], self._labels[index]
        return self.transform(Image.open(io.BytesIO(encode_png(self._pictures[index])))), self._labels[index]


def _table(dataset: CondensedDataset) -> pa.Table:
    labels = dataset.labels.tolist()
    pictures = [{"bytes": encode_png(image), "path": f"{row:06d}.png"} for row, image in enumerate(dataset.images)]
    columns = {
        "image": pa.array(pictures, _IMAGE),
        "label": pa.array(labels, pa.int64()),
        "label_name": pa.array([dataset.class_names[label] for label in labels], pa.string()),
        "bits": _numbers(dataset.bits, len(dataset.labels)),
        "bits_per_dim": _numbers(dataset.bits_per_dim, len(dataset.labels)),
    }
    if dataset.soft_labels is not None:
        columns["soft_label"] = pa.array(dataset.soft_labels.tolist(), pa.list_(pa.float32()))
    return pa.table(columns)


def _features(dataset: CondensedDataset) -> dict[str, Any]:
    number = {"dtype": "float64", "_type": "Value"}
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(dataset.class_names), "_type": "ClassLabel"},
        "label_name": {"dtype": "string", "_type": "Value"},
        "bits": number,
        "bits_per_dim": number,
    }
    if dataset.soft_labels is not None:
        features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
    return {"info": {"features": features}}


def _provenance(table: pa.Table, path: Path) -> dict[str, Any]:
    stored = (table.schema.metadata or {}).get(b"condense")
    if stored is None:
        raise DatasetError(
            f"{path} is not a condensed dataset: its metadata has no `condense` key",
            f"to condense it, give it as source=parquet:{path}",
        )
    try:
        provenance = json.loads(stored)
        known = provenance["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        raise DatasetError(f"{path}: its `condense` metadata is damaged", "copy the file again") from None
    if not known:
        raise DatasetError(f"{path}: format {provenance['format']}, this version reads {FORMAT}", "update Condense")
    return dict(provenance)


def _dataset(table: pa.Table, provenance: dict[str, Any], path: Path) -> CondensedDataset:
    if missing := {"image", "label", "bits", "bits_per_dim"} - set(table.column_names):
        raise DatasetError(f"{path}: no column {', '.join(sorted(missing))}", "the file was changed: download it again")
    rows = table.to_pydict()
    if not rows["label"]:
        raise DatasetError(f"{path} holds no images", "write it again")
    frame = Frame(size=None)
    pictures = []
    for row, image in enumerate(rows["image"]):
        where = f"{path}, row {row}"
        pictures.append((where, decode(image["bytes"], where)))
    images = stack(pictures, len(pictures), framed_shape(pictures[0][1], frame, pictures[0][0]), frame)
    soft = rows.get("soft_label")
    return CondensedDataset(
        images=images,
        labels=torch.tensor(rows["label"], dtype=torch.int64),
        class_names=tuple(provenance["class_names"]),
        bits=_tensor(rows["bits"]),
        bits_per_dim=_tensor(rows["bits_per_dim"]),
        soft_labels=None if soft is None else torch.from_numpy(np.array(soft, dtype=np.float32)),
        provenance=provenance,
    )


def _numbers(values: Tensor | None, count: int) -> pa.Array:
    """Returns a nullable float64 column; all null where there are no values."""
    return pa.nulls(count, pa.float64()) if values is None else pa.array(values.tolist(), pa.float64())


def _tensor(values: list[float | None]) -> Tensor | None:
    return None if all(value is None for value in values) else torch.tensor(values, dtype=torch.float64)
