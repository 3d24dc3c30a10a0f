from __future__ import annotations

import json

import torch

from condense.flow.bits import UniformDensity
from condense.flow.caution import GREY, caution, odd_images


def test_the_card_says_what_each_kind_costs_beside_its_png() -> None:
    said = caution(UniformDensity((1, 16, 16)), count=3)
    assert set(said["made_images"]) == set(odd_images((1, 16, 16), 3))
    assert all(kind["bits_per_dim"] == kind["most"] == 8.0 for kind in said["made_images"].values())
    png = {name: kind["png_bits_per_dim"] for name, kind in said["made_images"].items()}
    assert png["constant"] < png["ramps"] < png["noise"]
    assert GREY not in said["sentences"]
    assert json.loads(json.dumps(said)) == said


def test_a_colour_flow_warns_of_grey_copies() -> None:
    assert GREY in caution(UniformDensity((3, 16, 16)), count=1)["sentences"]


def test_made_images_are_what_their_names_say() -> None:
    made = {name: images.float() for name, images in odd_images((3, 32, 32), 8).items()}
    assert all(images.shape == (8, 3, 32, 32) for images in made.values())
    assert (made["constant"].std((2, 3)) == 0).all()
    assert (made["stripes of 1 to 3 pixels"].std(3) == 0).all()
    board = made["black and white checkerboard"]
    assert torch.equal(board, 255 - board.roll(1, 2))
    jumps = {name: images.diff(dim=3).abs().mean() for name, images in made.items()}
    assert jumps["ramps"] < jumps["4x4 noise enlarged smoothly"] < jumps["noise"]
