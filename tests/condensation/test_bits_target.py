"""A wanted number of bits per dim is reached, from any checkpoint with the same bytes."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condense.condensation.bits_target import ATTEMPTS, LEAST, WeightSearch
from condense.condensation.config import RunConfig
from condense.errors import ConfigError
from condense.settings import resolve
from condense.workers.checkpoints import Checkpoint
from tests.builders.runs import KilledAfter, KilledError, run

SETTINGS = (
    "network.name=mlp",
    "network.width=16",
    "network.depth=1",
    "outer_steps=10",
    "matching.real_batch=8",
    "matching.updates=3",
    "checkpoint_every=1",
    "evaluation.learners=1",
    "evaluation.validation_images=40",
    "evaluation.every=10",
    "evaluation.test=false",
)


def config(*overrides: str) -> RunConfig:
    return resolve(RunConfig, None, (*SETTINGS, *overrides))


@given(st.floats(0.05, 0.5), st.floats(0.5, 5), st.floats(-2, 2), st.floats(0, 0.003))
def test_attempts_find_the_weight_of_bits_that_fall_with_it(
    slope: float, target: float, away: float, noise: float
) -> None:
    search = WeightSearch(target)
    while not search.over:
        weight = search.weight
        jitter = 1 + noise * math.sin(1e4 * weight)
        search.tried.append((weight, target * jitter * math.exp(-slope * (math.log(weight / 10) - away))))
    assert search.tried[-1][1] == pytest.approx(target, rel=0.02)
    again = WeightSearch(target)
    again.restore_(Checkpoint(0, "identity", {}, search.state().scalars))
    assert again.tried == search.tried


def test_a_set_that_costs_less_without_a_weight_ends_the_attempts() -> None:
    search = WeightSearch(5.0)
    while not search.over:
        search.tried.append((search.weight, 3.0))
    assert search.tried[-1][0] <= LEAST
    assert len(search.tried) < ATTEMPTS


def test_a_target_and_a_weight_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="bits_target finds the weight"):
        config("bits_target=1.0", "bits_weight=3")


@pytest.mark.parametrize("target", [2.5, 4.0])
def test_digits_end_at_the_wanted_bits_and_resume_to_the_same_bytes(target: float, tmp_path: Path) -> None:
    wanted = config(f"bits_target={target}")
    whole = run(wanted)
    bits = whole.provenance["bits"]
    assert bits["per_dim_after"] == pytest.approx(target, rel=0.02)
    fixed = run(config(f"bits_weight={bits['weight']!r}"))
    assert fixed.provenance["content_digest"] == whole.provenance["content_digest"]
    if target == 2.5:
        with pytest.raises(KilledError):
            run(wanted, KilledAfter(tmp_path, 13))
        resumed = run(wanted, KilledAfter(tmp_path, 10**6))
        assert resumed.provenance["content_digest"] == whole.provenance["content_digest"]
        assert resumed.provenance["bits"]["weight"] == bits["weight"]
