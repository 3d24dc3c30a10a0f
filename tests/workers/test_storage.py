"""Checkpoints in a folder and on S3: whole, the last two, and intact when the place fails in every way that it can."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch

from condense.condensation.config import RunConfig
from condense.condensation.loop import condense
from condense.errors import CheckpointError, ConfigError, OutputError
from condense.settings import resolve
from condense.workers.checkpoints import Checkpoint, Checkpoints, NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import WorkerContext
from condense.workers.storage import MARK, Storage, StoredCheckpoints, file_name
from condense.workers.tracking import NullTracker
from tests.builders.runs import TINY, KilledError
from tests.builders.s3 import Bucket


class WritableBucket(Bucket):
    """Adds single and multipart uploads, listings of anything, and removal."""

    def do_PUT(self) -> None:
        address = urlsplit(self.path)
        body = self.body()
        part = parse_qs(address.query).get("partNumber", [""])[0]
        path = self.root / (unquote(address.path).strip("/").partition("/")[2] + (f".part{part}" if part else ""))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not address.path.endswith("/"):  # such a key stands for an empty folder
            path.write_bytes(body)
        self.answer(200, "", ETag='"etag"')

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        body = self.body()
        path = self.root / unquote(address.path).strip("/").partition("/")[2]
        if "uploads" in address.query:
            self.answer(200, "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        elif "uploadId" in address.query:
            parts = sorted(path.parent.glob(f"{path.name}.part*"))
            path.write_bytes(b"".join(part.read_bytes() for part in parts))
            for part in parts:
                part.unlink()
            self.answer(200, "<CompleteMultipartUploadResult><ETag>etag</ETag></CompleteMultipartUploadResult>")
        else:
            for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                (self.root / key).unlink(missing_ok=True)
            self.answer(200, "<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        (self.root / unquote(urlsplit(self.path).path).strip("/").partition("/")[2]).unlink(missing_ok=True)
        self.answer(204, "")

    def body(self) -> bytes:
        """What a request carries; HTTP's chunks may hold S3's, which end in a checksum."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        whole = b"".join(pieces)
        return unchunked(whole) if "aws-chunked" in self.headers.get("Content-Encoding", "") else whole

    def listing(self, prefix: str) -> bytes:
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{path.stat().st_size}</Size></Contents>"
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and (name := path.relative_to(self.root).as_posix()).startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()

    def answer(self, status: int, body: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())


def unchunked(body: bytes) -> bytes:
    """The content of an upload in signed chunks: SIZE;signature, bytes, and so on until a size of nought."""
    content = b""
    while body:
        head, _, rest = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            break
        content, body = content + rest[:size], rest[size + 2 :]
    return content


class Server(ThreadingHTTPServer):
    """Closes what its clients keep open when it stops, as a machine that goes away does."""

    def __init__(self, *arguments: Any) -> None:
        self.open: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Served:
    """A bucket of the files below a folder, at one address for as long as the test lasts, sometimes not there."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, 0
        self.start()

    @property
    def uri(self) -> str:
        return f"s3://bucket/runs?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = Server(("127.0.0.1", self.port), type("Here", (WritableBucket,), {"root": self.root}))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    served = Served(tmp_path / "bucket")
    yield served
    served.stop()


def checkpoint(step: int, size: int = 4) -> Checkpoint:
    return Checkpoint(step, "run", {"alpha": torch.full((size,), float(step))}, {"a": 0.5})


def started(uri: str) -> StoredCheckpoints:
    kept = StoredCheckpoints(uri, "run")
    kept.mark("now")
    return kept


class StorageContract:
    """What holds in every place; subclasses say where."""

    @pytest.fixture
    def uri(self) -> str:
        raise NotImplementedError

    def test_the_last_two_checkpoints_are_kept_and_the_last_is_found(self, uri: str) -> None:
        kept = started(uri)
        assert kept.latest() is None
        for step in (1, 2, 10):
            kept.save(checkpoint(step), {})
        kept.save(None, {})
        again = StoredCheckpoints(uri, "run")
        assert again.steps() == [2, 10]
        found = again.latest()
        assert found is not None
        assert (found.step, found.identity, found.scalars) == (10, "run", {"a": 0.5})
        assert torch.equal(found.tensors["alpha"], torch.full((4,), 10.0))
        assert StoredCheckpoints(uri, "another").latest() is None

    def test_nothing_is_left_of_a_run_that_is_forgotten(self, uri: str) -> None:
        kept = started(uri)
        kept.save(checkpoint(1), {})
        kept.forget()
        assert Storage(uri).names() == []
        assert kept.storage.names() == []
        kept.forget()

    def test_a_note_of_the_driver_is_seen(self, uri: str) -> None:
        started(uri)
        assert StoredCheckpoints(uri, "run").marked("now")
        assert not StoredCheckpoints(uri, "run").marked("then")
        assert not StoredCheckpoints(uri, "another").marked("now")

    def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(self, uri: str) -> None:
        kept = started(uri)
        kept.save(checkpoint(1), {})
        whole = kept.storage.read(file_name(1))
        assert whole is not None
        kept.storage.write(file_name(2), whole[: len(whole) // 2])
        found = kept.latest()
        assert found is not None
        assert found.step == 1
        kept.storage.write(file_name(1), b"")
        with pytest.raises(CheckpointError, match=r"(?s)step-000000002.*delete it"):
            kept.latest()

    def test_a_place_that_lost_the_run_is_an_error(self, uri: str) -> None:
        kept = started(uri)
        kept.storage.remove(MARK)
        with pytest.raises(OutputError, match="has lost"):
            kept.save(checkpoint(1), {})


class TestFolder(StorageContract):
    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return str(tmp_path / "runs")


class TestFileUri(StorageContract):
    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return (tmp_path / "runs").as_uri()


class TestS3(StorageContract):
    @pytest.fixture
    def uri(self, bucket: Served) -> str:
        return bucket.uri


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of 64 KiB cannot be mounted here")
    try:
        kept = started(str(disk))
        kept.save(checkpoint(1), {})
        with pytest.raises(OutputError, match=r"No space left.*\n.*free space"):
            kept.save(checkpoint(2, size=1 << 16), {})
        found = StoredCheckpoints(str(disk), "run").latest()
        assert found is not None
        assert found.step == 1
        assert sorted(path.name for path in (disk / "run").iterdir()) == [MARK, file_name(1)]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_without_permission_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    kept = started(str(tmp_path))
    kept.save(checkpoint(1), {})
    os.chmod(tmp_path / "run", 0o500)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises((OutputError, CheckpointError), match="ermission"):
            kept.save(checkpoint(2), {})
    finally:
        if root:
            os.seteuid(0)
        os.chmod(tmp_path / "run", 0o700)
    assert kept.steps() == [1]


def test_a_store_that_goes_away_is_named_and_comes_back_with_its_last_checkpoint(bucket: Served) -> None:
    kept = started(bucket.uri)
    kept.save(checkpoint(1), {})
    bucket.stop()
    with pytest.raises((OutputError, CheckpointError), match=r"storage=s3://bucket/runs/run.*cannot be"):
        kept.save(checkpoint(2), {})
    bucket.start()
    assert kept.steps() == [1]
    kept.save(checkpoint(2), {})
    assert kept.steps() == [1, 2]


@pytest.mark.parametrize("uri", ["s3://key:hidden@bucket/runs", "nothing://bucket/runs"])
def test_a_uri_with_a_key_in_it_or_of_an_unknown_kind_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Storage(uri)
    assert "hidden" not in str(caught.value)


def test_a_run_on_s3_that_is_killed_goes_on_to_the_same_digest(bucket: Served) -> None:
    class KilledAfterTwo(StoredCheckpoints):
        def save(self, checkpoint: Checkpoint | None, metrics: dict[str, float]) -> None:
            super().save(checkpoint, metrics)
            if self.steps()[-1] == 2:
                raise KilledError

    def digest(keep: Checkpoints) -> str:
        config = resolve(RunConfig, None, (*TINY, "evaluation.controls=false"))
        context = WorkerContext(Alone(), NullTracker(), keep, lambda at: None, torch.device("cpu"))
        return str(condense(config, context).provenance["content_digest"])

    dying = KilledAfterTwo(bucket.uri, "run")
    dying.mark("now")
    with pytest.raises(KilledError):
        digest(dying)
    assert digest(StoredCheckpoints(bucket.uri, "run")) == digest(NoCheckpoints())
