"""Finds the columns of images and labels in a Parquet schema, and the class names that it declares."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from condense.errors import SourceError, reason_of

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "y")


def plain(kind: Any) -> Any:
    """Returns the type of the values, dictionary-encoded or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def of_one_type(table: Any, where: str) -> Any:
    """Returns a file's columns as int64 and text: shards may differ in width and encoding."""
    for number, field in enumerate(table.schema):
        wanted = pa.int64() if pa.types.is_integer(plain(field.type)) else pa.large_string()
        column = table.column(number)
        try:
            column = column.cast(plain(field.type)).cast(wanted)
        except pa.ArrowException as error:
            raise SourceError(f"{where}: column {field.name!r}: {reason_of(error)}", "correct the column") from None
        table = table.set_column(number, field.name, column)
    return table.replace_schema_metadata(None)


def is_image(kind: Any) -> bool:
    """Says whether a column of this type can hold the bytes of images."""
    kind = plain(kind)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_label(kind: Any) -> bool:
    """Says whether a column of this type can hold labels: integers or text."""
    kind = plain(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(text or pa.types.is_integer(kind))


def find_image_column(schema: Any, wanted: str | None, where: str) -> str:
    """Returns the column of images: the wanted one, or the one that can be told; raises SourceError."""
    candidates = [name for name in schema.names if is_image(schema.field(name).type)]
    if wanted is not None:
        candidates = [name for name in candidates if name == wanted]
    if "image" in candidates:
        return "image"
    if len(candidates) == 1:
        return str(candidates[0])
    listed = ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names)
    sought = "no column of image bytes" if not candidates else "more than one column of image bytes"
    raise SourceError(
        f"{where}: {sought}{f' named {wanted!r}' if wanted else ''}; its columns are {listed}",
        "expected `image` as struct<bytes, path> or binary; else set data.image_column",
    )


def find_label_column(schema: Any, wanted: str | None, where: str) -> str:
    """Returns the column of labels: the wanted one, or the one that can be told; raises SourceError."""
    usable = [name for name in schema.names if is_label(schema.field(name).type)]
    for name in (wanted,) if wanted is not None else _LABEL_COLUMNS:
        if name in usable:
            return name
    listed = ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names)
    raise SourceError(
        f"{where}: no column of labels{f' named {wanted!r}' if wanted else ''}; its columns are {listed}",
        "expected `label` as integers or strings; else set data.label_column",
    )


def declared_classes(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Returns the class names of the Hugging Face metadata, if it has them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, ValueError, TypeError):
        return None
