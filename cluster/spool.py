"""Records that wait to be sent, in order: in memory and, so that they outlive the process, in a JSONL file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from condense.errors import OutputError, TrackingError

Record = dict[str, Any]


class Spool:
    """A queue of JSON records; with a file, every record is written there before anything is sent.

    A record whose line was cut off by a kill is dropped: its step will be repeated. The file goes away when empty.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file.absolute() if file is not None else None
        self.records: list[Record] = []
        if self.file is not None and self.file.exists():
            self._load(self.file)

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: Record) -> None:
        """Adds one record at the end."""
        self.records.append(record)
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
            except OSError as error:
                raise OutputError(f"spool {self.file} cannot be written: {error}", "free space or move it") from None

    def keep_only(self, records: list[Record]) -> None:
        """Replaces what waits, in memory and in the file."""
        self.records = records
        if self.file is None:
            return
        try:
            if not records:
                self.file.unlink(missing_ok=True)
                return
            beside = self.file.with_name(f"{self.file.name}.{os.getpid()}.tmp")
            with beside.open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(record) + "\n" for record in records)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.file)
        except OSError as error:
            raise OutputError(f"spool {self.file} cannot be written: {error}", "free space or move it") from None

    def _load(self, file: Path) -> None:
        text = file.read_text(encoding="utf-8", errors="replace")
        *lines, cut_off = text.split("\n")
        for row, line in enumerate(lines, start=1):
            try:
                self.records.append(json.loads(line))
            except ValueError:
                raise TrackingError(f"spool {file}, line {row} is not JSON", "repair or remove the file") from None
        if cut_off:
            self.keep_only(self.records)
