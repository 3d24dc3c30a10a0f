"""The space that a run asks for before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from condense import api
from condense.condensation.config import RunConfig
from condense.condensation.space import SPARE, check_space_of, space_of
from condense.data.sources import open_source
from condense.errors import OutputError
from condense.settings import resolve
from condense.workers.context import Progress
from condense.workers.storage import KEEP
from tests.builders.runs import TINY


def config(folder: Path, *overrides: str) -> RunConfig:
    places = (f"output={folder}/condensed", f"storage={folder}/runs", "tracking_uri=none", "workers=0")
    return resolve(RunConfig, None, [*TINY, *places, "evaluation.controls=false", *overrides])


def test_a_run_writes_what_it_asks_for_and_at_most_twice_of_it(tmp_path: Path) -> None:
    of = config(tmp_path, "images_per_class=10", "outer_steps=2", "evaluation.test=false")
    asked = space_of(of, open_source(of.source, of.data, seed=of.seed))
    sizes = list[int]()

    def look(at: Progress) -> None:
        sizes.extend(file.stat().st_size for file in tmp_path.rglob("step-*.safetensors"))

    api.run(of, progress=look)
    kept = (asked[tmp_path / "runs"] - SPARE) / (KEEP + 1)
    assert kept == 8 * 10 * 10 * 16 * 16
    assert kept < max(sizes) < 2 * kept


def test_a_disk_without_the_space_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condense.condensation.space.SPARE", 1 << 60)
    of = config(tmp_path)
    with pytest.raises(OutputError, match=rf"the disk of {tmp_path}/condensed has \d+ MiB free, and 10995\d+ MiB"):
        api.run(of, progress=lambda at: pytest.fail("it works"))
    assert not (tmp_path / "runs").exists()


def test_an_object_store_is_not_asked(tmp_path: Path) -> None:
    of = config(tmp_path, "storage=s3://bucket/runs")
    source = open_source(of.source, of.data, seed=of.seed)
    check_space_of(of, source)
    assert not [folder for folder in space_of(of, source) if "bucket" in str(folder)]
