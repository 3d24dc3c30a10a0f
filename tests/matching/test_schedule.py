"""Ends of runs that move: settled curves, time budgets, averaged images, and what a resumed run makes of them."""

import math
from pathlib import Path

import pytest
import torch

from condense.condensation.config import RunConfig
from condense.errors import ConfigError
from condense.matching.schedule import Schedule
from condense.settings import resolve
from condense.synthetic.config import ImagesConfig
from condense.synthetic.synthetic_set import initial_set
from condense.workers.checkpoints import Checkpoint, LocalCheckpoints
from condense.workers.time_budget import parse_duration
from tests.builders.runs import TINY, KilledAfter, KilledError, run


def test_the_phase_reaches_one_at_a_moved_end_without_a_jump() -> None:
    schedule = Schedule(100)
    before = schedule.phase(40 * 5, 5)
    schedule.end_at_(40, 60)
    assert schedule.phase(40 * 5, 5) == pytest.approx(before) == 0.4
    assert schedule.phase(50 * 5, 5) == pytest.approx(0.7)
    assert schedule.phase(60 * 5, 5) == pytest.approx(1.0)
    schedule.end_at_(50, 90)
    assert schedule.phase(50, 1) == pytest.approx(0.7)
    assert schedule.phase(90, 1) == pytest.approx(1.0)


def test_a_curve_has_settled_where_neither_accuracy_nor_bits_get_better() -> None:
    schedule = Schedule(100, patience=2)
    for done, accuracy, bits in ((10, 50.0, 5.0), (20, 60.0, 5.0), (30, 60.2, 4.0), (40, 60.1, 3.99), (50, 60.0, 3.98)):
        schedule.follow_(done, accuracy, bits)
        assert schedule.why == ("settled" if done == 50 else "outer_steps")
    assert schedule.total == 60  # a fifth of what was done, for the rate to come down


def test_a_curve_never_settles_without_patience_and_a_settled_end_is_not_put_off() -> None:
    schedule = Schedule(100)
    for done in range(10, 100, 10):
        schedule.follow_(done, 50.0, None)
    assert (schedule.total, schedule.why) == (100, "outer_steps")
    schedule = Schedule(100, patience=1)
    schedule.follow_(10, 50.0, None)
    schedule.follow_(20, 50.0, None)
    assert (schedule.total, schedule.why) == (24, "settled")
    schedule.use_time_(21, seconds=100, spent=1, steps=1)
    assert schedule.total == 24
    schedule.use_time_(22, seconds=1, spent=1, steps=1)
    assert schedule.total == 23


def test_time_left_is_turned_into_outer_steps() -> None:
    schedule = Schedule(1000)
    schedule.use_time_(10, seconds=30, spent=20, steps=10)
    assert (schedule.total, schedule.why) == (25, "time")
    schedule.use_time_(20, seconds=-1, spent=40, steps=20)
    assert schedule.total == 20


def test_a_schedule_comes_back_from_its_state() -> None:
    schedule = Schedule(100, patience=3)
    schedule.follow_(10, 50.0, 3.0)
    schedule.use_time_(12, seconds=30, spent=12, steps=12)
    other = Schedule(100, patience=3)
    other.restore_(Checkpoint(12, "identity", {}, schedule.state().scalars))
    assert vars(other) == vars(schedule)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("45", 45)])
def test_a_budget_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "0m", "10x", "-5m"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no time to work with"):
        parse_duration(text)


@pytest.mark.parametrize("key", ["time_budget_s=60", "evaluation.patience=2"])
def test_a_bits_target_excludes_an_end_that_moves(key: str) -> None:
    with pytest.raises(ConfigError, match="bits_target compares whole runs"):
        resolve(RunConfig, None, ["bits_target=2", key])


def test_a_run_with_a_time_budget_uses_it() -> None:
    config = resolve(RunConfig, None, [*TINY, "bits_weight=0", "time_budget_s=12", "evaluation.controls=false"])
    facts = run(config).provenance
    assert facts["ended_by"] == "time"
    assert facts["outer_steps"] > 2
    assert 6 < facts["seconds"] < 18


def test_a_run_whose_curve_settles_ends_early_and_resumes_to_the_same_images(tmp_path: Path) -> None:
    settings = [*TINY, "outer_steps=200", "evaluation.every=2", "evaluation.patience=1", "checkpoint_every=1"]
    config = resolve(RunConfig, None, [*settings, "images.learning_rate=1e-9", "images.averaging=0.9"])
    whole = run(config)
    assert whole.provenance["ended_by"] == "settled"
    assert whole.provenance["outer_steps"] == 5  # evaluated after 2 and 4, and a fifth of four more
    with pytest.raises(KilledError):
        run(config, KilledAfter(tmp_path, 4))
    resumed = run(config, LocalCheckpoints(tmp_path))
    assert resumed.provenance["outer_steps"] == 5
    assert resumed.provenance["content_digest"] == whole.provenance["content_digest"]


def test_averaged_images_are_the_mean_of_their_parameters_over_updates() -> None:
    config = ImagesConfig(averaging=0.5)
    real = [torch.zeros((2, 1, 8, 8), dtype=torch.uint8)]
    made = initial_set(config, real, range(1), 1, seed=0)
    expected = made.parameters[0].detach().clone()
    for update in range(1, 13):
        with torch.no_grad():
            made.parameters[0].fill_(math.sin(update))
        made.average_()
        weight = min(0.5, update / (update + 10))
        expected = weight * expected + (1 - weight) * math.sin(update)
    assert made.averages is not None
    torch.testing.assert_close(made.averages[0], expected)
    assert not torch.equal(made.images_uint8(), (made.images() * 255).round().to(torch.uint8))
