"""The main path in one process: digests, resuming, what the provenance states, retraining from the file."""

import math
from pathlib import Path

import pytest
import torch

from condense.condensation.reproduce import evaluate_dataset, judge_dataset
from condense.errors import CheckpointError, DatasetError, OutputError
from condense.synthetic.dataset import CondensedDataset, read_dataset, write_dataset
from condense.workers import checkpoints
from condense.workers.checkpoints import Checkpoint, LocalCheckpoints
from condense.workers.tracking import RecordingTracker
from tests.builders.runs import KilledAfter, KilledError, config, run


@pytest.fixture(scope="module")
def whole() -> CondensedDataset:
    return run(config("images_per_class=2"))


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(whole: CondensedDataset) -> None:
    digest = whole.provenance["content_digest"]
    assert run(config("images_per_class=2")).provenance["content_digest"] == digest
    assert run(config("images_per_class=2", "seed=1")).provenance["content_digest"] != digest


@pytest.mark.parametrize("steps", [1, 3])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    steps: int, whole: CondensedDataset, tmp_path: Path
) -> None:
    interrupted = config("images_per_class=2")
    tracker = RecordingTracker()
    with pytest.raises(KilledError):
        run(interrupted, KilledAfter(tmp_path, steps), tracker)
    resumed = run(interrupted, LocalCheckpoints(tmp_path), tracker)
    assert resumed.provenance["content_digest"] == whole.provenance["content_digest"]
    assert resumed.provenance["validation"] == whole.provenance["validation"]
    assert [step for step, _ in tracker.rows["validation/accuracy"]] == [2, 4]


def test_the_set_is_balanced_and_ordered_by_class(whole: CondensedDataset) -> None:
    assert whole.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert whole.images.shape == (20, 1, 16, 16)
    assert whole.images.dtype == torch.uint8


def test_the_file_alone_reproduces_its_stated_accuracy(whole: CondensedDataset, tmp_path: Path) -> None:
    found = evaluate_dataset(read_dataset(write_dataset(tmp_path / "set.parquet", whole)))
    assert found.stated == (found.evaluation.mean, found.evaluation.std)
    assert found.as_stated


def test_a_set_whose_run_left_the_test_split_unread_is_judged_later_with_the_same_numbers(
    whole: CondensedDataset, tmp_path: Path
) -> None:
    tracker = RecordingTracker()
    unread = run(config("images_per_class=2", "evaluation.test=false"), tracker=tracker)
    assert unread.provenance["content_digest"] == whole.provenance["content_digest"]
    assert "evaluation" not in unread.provenance
    assert not [name for name in tracker.rows if name.startswith("test/")]
    stored = read_dataset(write_dataset(tmp_path / "set.parquet", unread))
    found = evaluate_dataset(stored)
    assert found.stated is None
    assert found.evaluation.description() == whole.provenance["evaluation"]
    judged = judge_dataset(stored)
    assert judged.provenance["evaluation"] == whole.provenance["evaluation"]
    with pytest.raises(DatasetError, match="stated already"):
        judge_dataset(judged)


def test_controls_and_facts_are_stated(whole: CondensedDataset) -> None:
    facts = whole.provenance
    assert set(facts["controls"]) == {"random_real", "kmeans_real"}
    assert facts["source"]["digest"]
    assert facts["evaluation"]["recipe"] == "dc"
    assert facts["bits"]["per_dim_after"] is None
    stages = facts["seconds_by_stage"]
    assert math.isclose(facts["seconds"], sum(stages.values()))
    assert min(stages.values()) >= 0
    assert {"setting up", "outer steps", "validation", "testing set", "testing random real"} <= stages.keys()
    assert sum(facts["seconds_by_part"].values()) <= stages["outer steps"] + 0.05


def test_noise_and_real_initialisation_differ_and_real_starts_at_real_images() -> None:
    real = run(config("images.init=real", "images.learning_rate=1e-9"))
    noise = run(config("images.learning_rate=1e-9"))
    assert real.images.float().std() > 2 * noise.images.float().std()


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(config(), KilledAfter(tmp_path, 1))
    with pytest.raises(CheckpointError, match="belongs to run"):
        run(config("seed=7"), LocalCheckpoints(tmp_path))


def test_a_truncated_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / checkpoints.FILE
    checkpoints.write(Checkpoint(3, "run", {"alpha": torch.zeros(4)}, {"a": 1.0}), path)
    read = checkpoints.read(path)
    assert (read.step, read.identity, read.scalars) == (3, "run", {"a": 1.0})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=checkpoints.FILE):
        checkpoints.read(path)


def test_a_checkpoint_that_cannot_be_written_keeps_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        checkpoints.write(Checkpoint(1, "run", {}, {}), tmp_path / "file" / checkpoints.FILE)


def test_places_and_workers_do_not_change_the_identity_but_settings_do() -> None:
    one = config().identity()
    assert config("workers=2", "output=elsewhere", "tracking_uri=none", "storage=there").identity() == one
    assert config("bits_weight=0.1").identity() != one


def test_passwords_in_uris_do_not_reach_what_a_run_writes() -> None:
    assert "secret" not in str(config("tracking_uri=http://me:secret@host:5000").as_dict())
