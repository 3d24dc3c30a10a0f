"""The same command again: what was made is found at once, and only what is not whole any more is made again."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from condense import api
from condense.api import RunResult
from condense.synthetic.dataset import PARQUET, read_dataset
from condense.workers.context import Progress
from tests.builders.sources import rows, write_hub
from tests.conftest import QUICKSTART, TINY, Command, Outcome

TRACKED = (*(setting for setting in TINY if not setting.startswith("tracking_uri")), "tracking_uri=sqlite:///mlflow.db")
SECOND = "evaluation.learners=2"  # another run with the same images


def computed(outcome: Outcome) -> bool:
    assert outcome.code == 0, outcome.err
    return "condensing 1/2" in outcome.out


def told(outcome: Outcome, word: str) -> str:
    return next(line for line in outcome.out.splitlines() if line.startswith(word))


def test_a_run_that_was_made_is_found_and_its_file_stays_as_it_is(condense: Command, tmp_path: Path) -> None:
    first = condense("run", QUICKSTART, *TINY)
    file = tmp_path / first.dataset
    assert computed(first)
    assert "already made" not in first.out
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    again = condense("run", QUICKSTART, *TINY)
    assert not computed(again)
    assert told(again, "already made") == f"already made: {first.dataset}, nothing to do (--anew computes it again)"
    assert told(again, "│ condensed set") == told(first, "│ condensed set")
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, written)
    assert computed(condense("run", QUICKSTART, *TINY, "--anew"))
    assert computed(condense("run", QUICKSTART, *TINY, "seed=1"))


def test_a_damaged_dataset_is_made_again_and_a_lost_card_is_written_again(condense: Command, tmp_path: Path) -> None:
    first = condense("run", QUICKSTART, *TINY)
    file = tmp_path / first.dataset
    digest = read_dataset(file).provenance["content_digest"]
    os.truncate(file, 100)
    assert computed(condense("run", QUICKSTART, *TINY))
    assert read_dataset(file).provenance["content_digest"] == digest
    (file.parent / "README.md").unlink()
    assert not computed(condense("run", QUICKSTART, *TINY))
    assert (file.parent / "README.md").is_file()


def test_other_images_at_the_same_place_are_computed(condense: Command, tmp_path: Path) -> None:
    def write(first: int) -> None:
        images = [*rows(1, start=first), *rows(59, start=1)]
        write_hub(tmp_path / "own.parquet", images, [row % 2 for row in range(60)])

    settings = (*TINY, "source=parquet:own.parquet", "evaluation.test=false")
    write(0)
    first = condense("run", QUICKSTART, *settings)
    assert computed(first)
    assert not computed(condense("run", QUICKSTART, *settings))
    write(60)
    again = condense("run", QUICKSTART, *settings)
    assert computed(again)
    assert again.dataset == first.dataset


def test_a_run_whose_time_is_used_up_says_at_which_step(condense: Command, tmp_path: Path) -> None:
    made = condense("run", QUICKSTART, *TINY, "--budget", "2s")
    steps = read_dataset(tmp_path / made.dataset).provenance["outer_steps"]
    assert (
        told(made, "stopped") == f"stopped at step {steps}, where the time was used up; another --budget is another run"
    )


def test_the_same_run_twice_at_once_ends_twice_with_the_same_images(tmp_path: Path) -> None:
    settings = (*TINY, "checkpoint_every=1", f"output={tmp_path}/condensed", f"storage={tmp_path}/runs")
    ends: list[RunResult] = []

    def another(at: Progress) -> None:
        if at.stage == "condensing" and at.done == 1 and not ends:
            ends.append(api.run(QUICKSTART, settings))  # ends before this one, and takes the checkpoints with it

    ends.append(api.run(QUICKSTART, settings, progress=another))
    first, second = ends
    assert first.path == second.path
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    digests = [made.dataset.provenance["content_digest"] for made in ends]
    assert digests == [read_dataset(first.path).provenance["content_digest"]] * 2


@pytest.mark.mlflow
def test_a_registered_run_is_found_with_its_version_and_one_run_id(condense: Command, tmp_path: Path) -> None:
    first = condense("run", QUICKSTART, *TRACKED)
    assert computed(first)
    again = condense("run", QUICKSTART, *TRACKED)
    assert not computed(again)
    assert "already made: version 1 of digits-ipc1, nothing to do" in again.out
    assert told(again, "version") == told(first, "version")
    assert told(again, "compare") == told(first, "compare")

    file = tmp_path / first.dataset
    content = file.read_bytes()
    shutil.rmtree(tmp_path / "condensed")
    assert not computed(condense("run", QUICKSTART, *TRACKED))
    assert read_dataset(file).provenance == read_dataset(_registered(tmp_path, first)).provenance
    assert _registered(tmp_path, first).read_bytes() == content

    second = condense("run", QUICKSTART, *TRACKED, SECOND)
    assert computed(second)
    repeated = condense("run", QUICKSTART, *TRACKED, SECOND)
    assert not computed(repeated)
    assert "already made: version 1 of digits-ipc1" in repeated.out, "the images are those of the first run"
    assert told(repeated, "│ condensed set") == told(second, "│ condensed set") != told(first, "│ condensed set")

    _registered(tmp_path, first).unlink()
    assert computed(condense("run", QUICKSTART, *TRACKED)), "a version whose file is gone was taken for made"


def _registered(folder: Path, outcome: Outcome) -> Path:
    """The file of a run's version in the artifacts of its MLflow run."""
    run_id = re.search(r"MLflow run (\w+)", outcome.out)
    assert run_id
    (file,) = (folder / "mlartifacts").glob(f"**/{run_id[1]}/**/{PARQUET}")
    return file


@pytest.mark.mlflow
def test_a_flow_that_was_fitted_is_found_and_its_lost_file_brought_back(condense: Command, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        "{name: small, source: digits, validation_fraction: 0.1, steps: 3, batch_size: 8, warmup_steps: 1,"
        " initial_images: 32, evaluate_every: 3, evaluation_images: 8, architecture: {channels: 1, image_size: 16,"
        " levels: 2, steps: 1, hidden: 4, components: 2}}"
    )
    for store, what in (("none", "flow.safetensors"), ("sqlite:///mlflow.db", "version 1 of flow-small")):
        fit = ("flow", "fit", "flow.yaml", f"tracking_uri={store}")
        first = condense(*fit)
        assert "fitting 3/3" in first.out, first.err
        flow = (tmp_path / "flow.safetensors").read_bytes()
        if store != "none":
            (tmp_path / "flow.safetensors").unlink()
        again = condense(*fit)
        assert "fitting" not in again.out
        assert f"already made: {what}, nothing to do" in again.out
        assert (tmp_path / "flow.safetensors").read_bytes() == flow
        assert "fitting 3/3" in condense(*fit, "seed=1").out
        assert "fitting 3/3" in condense(*fit, "--anew").out
