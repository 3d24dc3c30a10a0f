"""Canvases: what learners see of them, what they start from, and that a file carries its factor."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from condense.errors import ConfigError
from condense.pixels import to_float, to_uint8
from condense.synthetic.config import ImagesConfig
from condense.synthetic.dataset import CondensedDataset, CondensedImages, read_dataset, write_dataset
from condense.synthetic.decoder import check_factor, decode, decode_uint8, tile
from condense.synthetic.synthetic_set import initial_set


def slow_decode(canvas: Tensor, factor: int) -> Tensor:
    """One square at a time, each pixel of the enlarged image from its four neighbours in the square."""
    height, width = canvas.shape[1:]
    h, w = height // factor, width // factor
    images = []
    for row in range(factor):
        for column in range(factor):
            square = canvas[:, row * h : (row + 1) * h, column * w : (column + 1) * w]
            image = torch.zeros_like(canvas)
            for y in range(height):
                for x in range(width):
                    v, u = max(0.0, (y + 0.5) / factor - 0.5), max(0.0, (x + 0.5) / factor - 0.5)
                    top, left = int(v), int(u)
                    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
                    a, b = v - top, u - left
                    image[:, y, x] = (1 - a) * ((1 - b) * square[:, top, left] + b * square[:, top, right])
                    image[:, y, x] += a * ((1 - b) * square[:, bottom, left] + b * square[:, bottom, right])
            images.append(image)
    return torch.stack(images)


def random(count: int, side: int, channels: int = 2) -> Tensor:
    return torch.rand((count, channels, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_decoded_images_are_the_enlarged_squares_on_the_8_bit_grid(factor: int) -> None:
    canvases = random(2, 12)
    expected = torch.cat([slow_decode(canvas, factor) for canvas in canvases])
    decoded = decode(canvases, factor)
    assert decoded.shape == (2 * factor**2, 2, 12, 12)
    assert (decoded - expected).abs().max() <= 0.5 / 255 + 1e-9
    assert torch.equal((decoded * 255).round() / 255, decoded) or ((decoded * 255) % 1).abs().max() < 1e-9


def test_every_pixel_of_a_canvas_is_used_and_its_gradient_is_the_interpolations() -> None:
    canvas = random(1, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(decode(canvas, 2).sum(), canvas)
    # Bilinear enlargement by two spreads each source pixel over four in all.
    torch.testing.assert_close(gradient.sum(), torch.tensor(4.0 * 2 * 64, dtype=torch.float64))
    assert bool((gradient > 0).all())


def test_factor_one_is_the_image_itself() -> None:
    images = to_uint8(random(3, 8))
    assert torch.equal(decode_uint8(images, 1), images)


def test_tiles_hold_the_scaled_down_images_in_the_order_in_which_they_are_decoded() -> None:
    flat = torch.arange(8.0)[:, None, None, None].expand(8, 1, 8, 8) / 8
    torch.testing.assert_close(decode(tile(flat, 2), 2), (flat * 255).round() / 255)


@pytest.mark.parametrize("init", ["real", "kmeans", "tiles"])
def test_a_set_starts_at_real_images_whoever_owns_the_class(init: str) -> None:
    draws = torch.Generator().manual_seed(2)
    real = [torch.randint(6, 250, (9, 1, 8, 8), generator=draws, dtype=torch.uint8) for _ in range(3)]
    config = ImagesConfig(init=init, factor=2)  # type: ignore[arg-type]
    whole = initial_set(config, real, range(3), 2, seed=1)
    images = whole.images_uint8()
    if init == "tiles":
        down = torch.nn.functional.avg_pool2d(to_float(real[0]), 2)
        corners = to_float(images[0])[:, :, :4, :4]
        assert all(bool(((down - corner).abs().amax((1, 2, 3)) < 0.5 / 255 + 1e-6).any()) for corner in corners)
    else:
        assert all(bool((real[0] == image).flatten(1).all(1).any()) for image in images[0])
    alone = initial_set(config, real[1:2], range(1, 2), 2, seed=1)
    assert torch.equal(alone.images_uint8()[0], images[1])


def test_tiles_repeat_the_images_of_a_class_that_has_too_few() -> None:
    real = [torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 8, 8) * 80 + 8]
    images = initial_set(ImagesConfig(init="tiles", factor=2), real, range(1), 2, seed=0).images_uint8()
    corners = images[0, :, 0, ::4, ::4].flatten().tolist()
    assert sorted(set(corners)) == [8, 88, 168]


def test_a_factor_that_does_not_divide_the_size_is_refused() -> None:
    check_factor(2, (1, 28, 28))
    with pytest.raises(ConfigError, match=r"images.factor 3 does not divide the images' 28x28"):
        check_factor(3, (1, 28, 28))


def test_a_file_stores_canvases_and_its_readers_decode_them(tmp_path: Path) -> None:
    images = to_uint8(random(2, 8, channels=3))
    facts = {"decoder": {"name": "tiles", "factor": 2}}
    path = write_dataset(
        tmp_path / "set.parquet", CondensedDataset(images, torch.tensor([0, 1]), ("a", "b"), None, None, None, facts)
    )
    read = read_dataset(path)
    assert torch.equal(read.images, images)
    decoded, labels = read.decoded()
    assert torch.equal(decoded, decode_uint8(images, 2))
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    pairs = CondensedImages(path)
    assert len(pairs) == 8
    assert torch.equal(pairs[5][0], to_float(decoded[5]))
    assert pairs[5][1] == 1
    assert CondensedImages(path, transform=lambda picture: picture.size)[7] == ((8, 8), 1)
