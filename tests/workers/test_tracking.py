"""The Tracker contract, inherited by the test of every tracker, and the image grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from condense.errors import TrackingError
from condense.image_grid import image_grid
from condense.workers.tracking import NullTracker, RecordingTracker, Tracker
from tests.builders.tracking import TrackerContract


class TestNullTracker(TrackerContract):
    def make(self, tmp_path: Path) -> Tracker:
        return NullTracker()

    def rows(self, tracker: Tracker, name: str) -> None:
        return None

    def picture_steps(self, tracker: Tracker, key: str) -> None:
        return None


class TestRecordingTracker(TrackerContract):
    def make(self, tmp_path: Path) -> Tracker:
        return RecordingTracker()

    def rows(self, tracker: Tracker, name: str) -> list[tuple[int, float]]:
        assert isinstance(tracker, RecordingTracker)
        return tracker.rows.get(name, [])

    def picture_steps(self, tracker: Tracker, key: str) -> list[int]:
        assert isinstance(tracker, RecordingTracker)
        return [step for step, _ in tracker.pictures.get(key, [])]

    def test_params_are_kept_under_dotted_keys_and_the_first_status_stays(self, tmp_path: Path) -> None:
        tracker = RecordingTracker()
        tracker.params({"data": {"image_size": 32}})
        tracker.close("KILLED")
        tracker.close()
        assert tracker.settings == {"data.image_size": 32}
        assert tracker.status == "KILLED"


def test_a_grid_holds_every_image_enlarged_by_a_whole_factor_with_gaps_between() -> None:
    images = torch.arange(6, dtype=torch.uint8).mul(40)[:, None, None, None].expand(6, 1, 8, 8)
    grid = image_grid(images, columns=3)
    cell = 8 * (640 // 24) + 2
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 2 * cell + 2, 3 * cell + 2)
    assert [int(grid[0, 2 + r * cell, 2 + c * cell]) for r in range(2) for c in range(3)] == [0, 40, 80, 120, 160, 200]
    assert (grid[:, :, :2] == 255).all()
    assert (grid[:, -2:, :] == 255).all()


def test_a_grid_shows_the_pixels_of_its_images_unchanged() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = image_grid(images, columns=2)
    factor = 640 // 16
    second = grid[:, 2 : 2 + 8 * factor : factor, 4 + 8 * factor :: factor][:, :, :8]
    assert torch.equal(second, images[1])


@pytest.mark.parametrize(
    ("classes", "images_per_class", "columns"),
    [(10, 10, 10), (10, 1, 3), (10, 5, 5), (10, 50, 25), (100, 1, 10), (2, 1, 1), (47, 1, 7)],
)
def test_a_row_of_a_grid_is_whole_classes_or_a_whole_part_of_one(
    classes: int, images_per_class: int, columns: int
) -> None:
    images = torch.zeros(classes * images_per_class, 1, 8, 8, dtype=torch.uint8)
    automatic = image_grid(images, images_per_class=images_per_class)
    assert automatic.shape == image_grid(images, columns).shape


def test_images_of_two_channels_have_no_grid() -> None:
    with pytest.raises(TrackingError, match="one or three channels"):
        image_grid(torch.zeros(2, 2, 8, 8, dtype=torch.uint8))
