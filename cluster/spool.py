"""Holds records that wait to be sent, in order.

They are in a JSONL file, so that they outlive the process, or in memory.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from condense.errors import OutputError, TrackingError
from condense.files import pack_line, unpack_lines

Record = dict[str, Any]


class Claim:
    """What one process holds of a spool, until it lets go or ends. While another holds it, making one gives no claim.

    Attributes:
        held: whether this process holds it.
    """

    def __init__(self, spool: Path) -> None:
        self.file = spool.with_suffix(".lock")
        self._stream: IO[str] | None = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            while self._stream is None:
                stream = self.file.open("w")
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    stream.close()
                    return
                if self.file.exists() and self.file.samefile(f"/dev/fd/{stream.fileno()}"):
                    self._stream = stream
                else:  # its last holder took it away meanwhile
                    stream.close()
        except OSError as error:
            raise OutputError(f"{self.file} cannot be written: {error}", "choose another folder") from None

    @property
    def held(self) -> bool:
        return self._stream is not None

    def release(self) -> None:
        """Lets go; doing it twice changes nothing."""
        if self._stream is not None:
            self.file.unlink(missing_ok=True)
            self._stream.close()
            self._stream = None


class Spool:
    """A queue of JSON records. With a file, the file is the queue: what another process left there is read too.

    A record whose line a kill cut off is dropped: a resumed run repeats its step. The file goes away when empty.
    One thread may add while another takes away; one process at a time.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file.absolute() if file is not None else None
        self._memory: list[Record] = []
        self._lock = threading.RLock()
        self.read()

    def read(self) -> list[Record]:
        """Returns everything that waits.

        Raises:
            TrackingError: naming the line that is damaged.
        """
        with self._lock:
            if self.file is None:
                return list(self._memory)
            if not self.file.exists():
                return []
            text = self.file.read_text(encoding="utf-8", errors="replace")
            *lines, cut_off = text.split("\n")
            try:
                records = unpack_lines(lines)
            except ValueError as error:
                raise TrackingError(f"spool {self.file}, {error}", "repair or remove the file") from None
            if cut_off:
                self._keep_only(records)
            return records

    def append(self, record: Record) -> None:
        """Adds one record at the end."""
        if self.file is None:
            with self._lock:
                self._memory.append(record)
            return
        with self._lock, self._writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(pack_line(record))

    def drop(self, count: int) -> None:
        """Takes the first records away."""
        if count:
            with self._lock:
                self._keep_only(self.read()[count:])

    def _keep_only(self, records: list[Record]) -> None:
        if self.file is None:
            self._memory = list(records)
            return
        with self._writing(self.file):
            if not records:
                self.file.unlink(missing_ok=True)
                return
            beside = self.file.with_name(f"{self.file.name}.{os.getpid()}.tmp")
            with beside.open("w", encoding="utf-8") as stream:
                stream.writelines(pack_line(record) for record in records)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.file)

    @contextmanager
    def _writing(self, file: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"spool {file} cannot be written: {error}", "free space, or choose another folder"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "waiting": self.read()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.file, self._memory, self._lock = state["file"], state["waiting"], threading.RLock()
        if self.file is not None:
            # On another machine the file does not exist; the store leaves out what arrives from both.
            if self._memory and not self.file.exists():
                for record in self._memory:
                    self.append(record)
            self._memory = []
