"""Generators are named by what they are for, and depend on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from condense.seeding import derived_seed, generator


def draw(**named: int) -> torch.Tensor:
    return torch.rand(8, generator=generator(0, "learner", **named))


def test_the_same_name_gives_the_same_numbers() -> None:
    assert torch.equal(draw(step=3, index=2, replica=1), draw(step=3, index=2, replica=1))


@pytest.mark.parametrize("other", [{"step": 1}, {"index": 1}, {"replica": 1}])
def test_each_part_of_the_name_changes_the_numbers(other: dict[str, int]) -> None:
    assert not torch.equal(draw(), draw(**other))


def test_seeds_of_unequal_names_are_unequal() -> None:
    seeds = {
        derived_seed(seed, purpose, step=step, index=index, replica=replica)
        for seed in (0, 1, 11)
        for purpose in ("learner", "real-batch", "dequantisation")
        for step in (0, 1, 11)
        for index in (0, 1, 11)
        for replica in (0, 1)
    }
    assert len(seeds) == 3 * 3 * 3 * 3 * 2


def test_a_seed_is_the_same_in_every_release() -> None:
    # Golden: `printf 0/learner/0/0/0 | b2sum -l 64`, read as a little-endian integer and halved.
    assert derived_seed(0, "learner") == 3401422482710930387


def test_a_seed_fits_a_signed_integer_of_64_bits() -> None:
    assert all(0 <= derived_seed(seed, "learner") < 2**63 for seed in range(100))


def test_a_generator_does_not_depend_on_the_global_ones_nor_touch_them() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    first = draw(step=1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(123)
        torch.rand(5)
        assert torch.equal(first, draw(step=1))


def test_draws_of_one_generator_do_not_move_another() -> None:
    one, other = generator(0, "learner"), generator(0, "real-batch")
    torch.rand(100, generator=one)
    assert torch.equal(torch.rand(4, generator=other), torch.rand(4, generator=generator(0, "real-batch")))


def test_streams_of_neighbouring_steps_are_uncorrelated() -> None:
    streams = torch.stack([torch.randn(4000, generator=generator(0, "learner", step=step)) for step in range(10)])
    correlation = torch.corrcoef(streams) - torch.eye(10)
    assert correlation.abs().max() < 5 / 4000**0.5
