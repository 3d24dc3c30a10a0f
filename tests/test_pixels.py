"""Bytes, floats and the 8-bit grid."""

from __future__ import annotations

import torch

from condense.pixels import LEVELS, dequantise, round_straight_through, to_float, to_uint8


def all_levels() -> torch.Tensor:
    return torch.arange(LEVELS, dtype=torch.uint8).view(1, 1, 16, 16)


def test_every_level_survives_the_way_to_float_and_back() -> None:
    assert torch.equal(to_uint8(to_float(all_levels())), all_levels())


def test_floats_run_from_zero_to_one() -> None:
    images = to_float(all_levels())
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1


def test_floats_outside_the_range_are_clamped_and_others_go_to_the_nearest_level() -> None:
    images = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 1.5])
    assert to_uint8(images).tolist() == [0, 0, 1, 255]


def test_rounded_images_are_on_the_grid_that_is_stored() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = round_straight_through(images)
    assert torch.equal(to_uint8(rounded), to_uint8(images))
    torch.testing.assert_close(rounded * 255, (rounded * 255).round(), atol=1e-12, rtol=0)


def test_rounding_passes_the_gradient_through_unchanged() -> None:
    images = torch.tensor([0.1, 0.501, 0.9], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    (round_straight_through(images) * weights).sum().backward()
    assert torch.equal(images.grad, weights)


def test_dequantised_images_stay_in_their_bin_and_in_the_density_range() -> None:
    levels = all_levels().double() / 255
    for noise in (0.0, 0.5, 0.999):
        seen = dequantise(levels, torch.full_like(levels, noise))
        assert seen.min() >= -0.5
        assert seen.max() < 0.5
        # At the lower edge of a bin, rounding of k / 255 may fall short by a unit in the last place.
        bins = ((seen + 0.5) * LEVELS + 1e-9).floor()
        assert torch.equal(bins, all_levels().double())


def test_the_default_dequantisation_is_the_middle_of_the_bin() -> None:
    seen = dequantise(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(seen, torch.tensor([0.5 / 256 - 0.5, 255.5 / 256 - 0.5], dtype=torch.float64))


def test_dequantisation_is_differentiable_in_the_images() -> None:
    images = torch.full((2, 2), 0.2, dtype=torch.float64, requires_grad=True)
    dequantise(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full((2, 2), 255 / 256, dtype=torch.float64))
