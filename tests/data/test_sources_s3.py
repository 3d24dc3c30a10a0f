"""Parquet on S3, through pyarrow's own client, from a small server that speaks the reading half of the protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.errors import SourceError
from tests.builders.s3 import Bucket
from tests.builders.sources import rows, write_hub

NATIVE = DataConfig(image_size=None)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The query of a URI that reaches a bucket of the files in tmp_path."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Bucket,), {"root": tmp_path}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_on_s3_gives_the_same_images_as_on_disk(tmp_path: Path, options: str) -> None:
    path = write_hub(tmp_path / "pets_train.parquet", rows(30), [row % 2 for row in range(30)])
    write_hub(tmp_path / "pets_test.parquet", rows(4, start=60), [0, 1] * 2)
    remote = open_source(f"parquet:s3://bucket/pets_train.parquet{options}", NATIVE, seed=0)
    local = open_source(f"parquet:{path}", NATIVE, seed=0)
    assert remote.name == local.name == "pets"
    assert remote.description()["test"] == "s3://bucket/pets_test.parquet"
    for split in ("train", "validation", "test"):
        assert torch.equal(remote.load(split).images, local.load(split).images)


def test_a_folder_on_s3_is_read_by_split(tmp_path: Path, options: str) -> None:
    for shard in range(2):
        write_hub(tmp_path / "pets" / f"train-{shard}.parquet", rows(10, start=10 * shard), [0, 1] * 5)
    write_hub(tmp_path / "pets" / "test-0.parquet", rows(4, start=60), [0, 1] * 2)
    source = open_source(f"parquet:s3://bucket/pets{options}", NATIVE, seed=0)
    assert sum(source.class_counts) + len(source.load("validation").labels) == 20
    assert len(source.load("test").labels) == 4


def test_a_missing_or_damaged_object_is_told_by_its_uri(tmp_path: Path, options: str) -> None:
    with pytest.raises(SourceError, match=r"s3://bucket/none\.parquet.* does not exist"):
        open_source(f"parquet:s3://bucket/none.parquet{options}", NATIVE, seed=0)
    write_hub(tmp_path / "pets.parquet", rows(10), [0, 1] * 4 + [0, 7])
    with pytest.raises(SourceError, match=r"s3://bucket/pets\.parquet, row 9: label 7"):
        open_source(f"parquet:s3://bucket/pets.parquet{options}", NATIVE, seed=0)


def test_a_uri_with_a_key_in_it_is_refused_without_repeating_the_key() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("parquet:s3://someone:hidden@bucket/pets.parquet", NATIVE, seed=0)
    assert "hidden" not in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy
