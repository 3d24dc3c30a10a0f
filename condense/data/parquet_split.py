"""Reads one split of images from Parquet files.

The images are a column as Hugging Face lays it out (struct<bytes, path>), or a plain column of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from condense.data.decoding import Picture, decode
from condense.data.labels import Labels, check_known, check_labels, check_names, check_not_negative, in_order_of
from condense.data.parquet_columns import (
    declared_classes,
    find_image_column,
    find_label_column,
    is_image,
    is_label,
    of_one_type,
    plain,
)
from condense.data.parquet_files import ParquetFiles
from condense.data.readers import Rows
from condense.errors import CondenseError, SourceError, reason_of

BATCH_ROWS, BATCH_BYTES = 512, 1 << 25  # encoded images in memory at once, beside the wanted ones
READ_BYTES = 1 << 23  # read of a row group at once: by default pyarrow reads all of it, however large it is
_NAME_COLUMNS = ("label_name", "label_text", "class_name")


class ParquetSplit:
    """The rows of one or more Parquet files.

    Footers are read when it is made, labels when they are asked for, images batch by batch: memory holds the wanted
    images, BATCH_ROWS encoded ones of BATCH_BYTES at most (a single larger one apart), and a label for every row.
    """

    def __init__(
        self,
        files: ParquetFiles,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        known_classes: tuple[str, ...] | None = None,
        allow_gaps: bool = False,
    ) -> None:
        """
        Args:
            files: the files, of the same columns; types may differ in what they are stored as.
            image_column: the column of images; None finds it.
            label_column: the column of labels; None finds it.
            known_classes: the class names of train, when this is another split; labels are brought into their order.
            allow_gaps: whether integer labels without names may leave numbers out; they are renumbered.

        Raises:
            SourceError: a file that is no Parquet file, has no rows, or lacks the columns.
        """
        self._files = files
        self._known_classes = known_classes
        self._allow_gaps = allow_gaps
        self._sizes: list[int] = []
        self._labels: Labels | None = None
        for number, path in enumerate(files.paths):
            with self._open(path) as file:
                schema = file.schema_arrow
                if number == 0:
                    self._schema = schema
                    self._image_column = find_image_column(schema, image_column, path)
                    self._label_column = find_label_column(schema, label_column, path)
                    self._declared = declared_classes(schema, self._label_column)
                elif sorted(schema.names) != sorted(self._schema.names):
                    raise SourceError(
                        f"{files.shown(path)}: columns {schema.names}, but {files.paths[0]} has {self._schema.names}",
                        "give one dataset alone",
                    )
                elif declared_classes(schema, self._label_column) != self._declared:
                    raise SourceError(
                        f"{path}: its classes are not those of {files.paths[0]}", "give one dataset alone"
                    )
                self._check_types(schema, files.shown(path))
                self._sizes.append(file.metadata.num_rows)
        if sum(self._sizes) == 0:
            raise SourceError(f"{self.where} holds no rows")
        if self._declared:
            check_names(self._declared, self.where)
            check_known(self._declared, known_classes or self._declared, self.where)

    def __len__(self) -> int:
        return sum(self._sizes)

    @property
    def files(self) -> ParquetFiles:
        return self._files

    @property
    def where(self) -> str:
        first = self._files.paths[0]
        return self._files.shown(first if len(self._files.paths) == 1 else first.rpartition("/")[0])

    @property
    def class_names(self) -> tuple[str, ...]:
        _ = self.labels
        return self._class_names

    @property
    def labels(self) -> Labels:
        if self._labels is None:
            self._labels, self._class_names = self._read_labels()
        return self._labels

    def _check_types(self, schema: Any, where: str) -> None:
        """Refuses a file whose images or labels are of another kind than the first file's."""
        image, label, first = (
            schema.field(self._image_column).type,
            schema.field(self._label_column).type,
            self._schema.field(self._label_column).type,
        )
        if not is_image(image):
            raise SourceError(f"{where}: column {self._image_column!r} is {image}", "expected bytes of images")
        if not is_label(label) or pa.types.is_integer(plain(label)) != pa.types.is_integer(plain(first)):
            raise SourceError(
                f"{where}: column {self._label_column!r} is {label}, but {first} in the first file",
                "write the labels of all files as integers, or of all as text",
            )

    def _row(self, row: int) -> str:
        for path, size in zip(self._files.paths, self._sizes, strict=True):
            if row < size:
                return f"{self._files.shown(path)}, row {row}"
            row -= size
        raise AssertionError(row)

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        try:
            with pq.ParquetFile(
                path, filesystem=self._files.filesystem, buffer_size=READ_BYTES, pre_buffer=False
            ) as file:
                yield file
        except (MemoryError, CondenseError):
            raise
        except Exception as error:  # noqa: BLE001 - each remote filesystem raises errors of its own network library
            reason = reason_of(error)
            shown = self._files.shown(path)
            raise SourceError(f"{shown}: not a readable Parquet file: {reason}", "write or download it again") from None

    def pictures(self, rows: Rows) -> Iterator[tuple[str, Picture]]:
        """Yields the decoded images of ascending rows. Row groups that hold none of them are not read."""
        start = 0
        for path, size in zip(self._files.paths, self._sizes, strict=True):
            inside = _between(rows, start, size) - start
            if len(inside):
                with self._open(path) as file:
                    yield from self._pictures_in(file, path, inside)
            start += size

    def _pictures_in(self, file: Any, path: str, rows: Rows) -> Iterator[tuple[str, Picture]]:
        nested = pa.types.is_struct(file.schema_arrow.field(self._image_column).type)
        column = f"{self._image_column}.bytes" if nested else self._image_column
        start = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if len(_between(rows, start, group.num_rows)):
                read = start
                # What the other columns take is counted too: the batch is rather too small than too large.
                at_once = max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
                for batch in file.iter_batches(at_once, row_groups=[number], columns=[column]):
                    encoded = pc.struct_field(batch.column(0), "bytes") if nested else batch.column(0)
                    for row in _between(rows, read, len(batch)).tolist():
                        where = f"{self._files.shown(path)}, row {row}"
                        data = encoded[row - read].as_py()
                        if data is None:
                            raise SourceError(
                                f"{where}: no image bytes", "embed the images in the file, or drop the row"
                            )
                        yield where, decode(data, where)
                    read += len(batch)
            start += group.num_rows

    def _read_labels(self) -> tuple[Labels, tuple[str, ...]]:
        named = next((c for c in _NAME_COLUMNS if c in self._schema.names and c != self._label_column), None)
        columns = [self._label_column, *([named] if named and not self._declared else [])]
        tables = []
        for path in self._files.paths:
            with self._open(path) as file:
                tables.append(of_one_type(file.read(columns=columns), self._files.shown(path)).select(columns))
        table = pa.concat_tables(tables)
        column = table.column(self._label_column)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise SourceError(f"{self._row(row)}: the label is null", "label the row, or drop it")
        if not pa.types.is_integer(column.type):
            labels, names = self._numbered(column)
        else:
            labels = column.to_numpy().astype(np.int64)
            names = self._declared or ()
            if names:
                check_labels(labels, names, self._row)
            elif named is None and self._known_classes and not self._numbers_are_names:
                names = self._known_classes  # named by train alone
                check_labels(labels, names, self._row)
            else:
                labels, names = self._named(labels, table.column(named) if named else None)
        if self._known_classes is None or names == self._known_classes:
            return labels, names
        return in_order_of(self._known_classes, labels, names, self._row), self._known_classes

    @property
    def _numbers_are_names(self) -> bool:
        """Whether train's classes were named by their numbers, of which some may be left out."""
        return self._allow_gaps and all(name.isdecimal() for name in self._known_classes or ())

    def _numbered(self, column: Any) -> tuple[Labels, tuple[str, ...]]:
        words, kinds = _encoded(column)
        names = self._declared or self._known_classes or tuple(sorted(kinds))
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers.get(kind, -1) for kind in kinds], dtype=np.int64)[words]
        unknown = np.flatnonzero(labels < 0)
        if len(unknown):
            row = int(unknown[0])
            raise SourceError(f"{self._row(row)}: label {kinds[words[row]]!r} is not one of the classes {list(names)}")
        return labels, names

    def _named(self, labels: Labels, column: Any) -> tuple[Labels, tuple[str, ...]]:
        """Names the integer labels that no metadata declares: by the name column if there is one, else by their
        numbers. Of another split than train some may be missing.
        """
        check_not_negative(labels, self._row)
        values, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
        gap = np.flatnonzero(values != np.arange(len(values)))
        if len(gap) and self._known_classes is None and not self._allow_gaps:
            row = int(first[gap[0]])
            raise SourceError(
                f"{self._row(row)}: label {labels[row]}, but no row has label {int(gap[0])}",
                "number the classes 0, 1, 2 ... without a gap, or set data.drop_empty_classes=true",
            )
        if column is None:
            return numbers, tuple(str(value) for value in values)
        words, kinds = _encoded(column)
        differing = np.flatnonzero(words != words[first][numbers])
        if len(differing):
            row = int(differing[0])
            here, before = kinds[words[row]], kinds[words[first[numbers[row]]]]
            raise SourceError(f"{self._row(row)}: label {labels[row]} is named {here!r} here and {before!r} before")
        names = tuple(str(kinds[words[row]]) for row in first)
        for place, name in enumerate(names):
            if (other := names.index(name)) < place:
                raise SourceError(
                    f"{self._row(int(first[place]))}: label {values[place]} is named {name!r}, as label "
                    f"{values[other]} is",
                    "give each class a name of its own, or its rows one label",
                )
        return numbers, names


def _between(rows: Rows, start: int, size: int) -> Rows:
    """Returns the ascending rows that lie in start .. start + size - 1."""
    return rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + size)]


def _encoded(column: Any) -> tuple[Labels, list[Any]]:
    """Encodes a column of words as the number of each row's word, and the words: millions of rows become no Python
    objects.
    """
    coded = column.cast(pa.large_string()).dictionary_encode(null_encoding="encode").combine_chunks()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()
