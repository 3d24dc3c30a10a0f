"""Pictures to track, and what every tracker must do."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from pathlib import Path

import pytest
import torch

from condense.errors import NonFiniteError, TrackingError
from condense.workers.tracking import Tracker


def picture(level: int = 7) -> torch.Tensor:
    return torch.full((3, 4, 5), level, dtype=torch.uint8)


class TrackerContract(ABC):
    """What holds for every tracker. `rows` and `picture_steps` say what was kept, or None where nothing is kept."""

    @abstractmethod
    def make(self, tmp_path: Path) -> Tracker:
        """A fresh tracker of a fresh run."""

    @abstractmethod
    def rows(self, tracker: Tracker, name: str) -> list[tuple[int, float]] | None:
        """(step, value) of one metric, in order of logging."""

    @abstractmethod
    def picture_steps(self, tracker: Tracker, key: str) -> list[int] | None:
        """Steps of the pictures under one key."""

    def expect(self, tracker: Tracker, name: str, rows: list[tuple[int, float]]) -> None:
        kept = self.rows(tracker, name)
        assert kept is None or kept == rows

    def test_a_step_at_or_below_the_last_of_its_metric_is_ignored(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        for step, loss in ((0, 3.0), (10, 2.0), (5, 9.0), (10, 8.0), (20, 1.0)):
            tracker.metrics({"loss": loss}, step)
        self.expect(tracker, "loss", [(0, 3.0), (10, 2.0), (20, 1.0)])

    def test_two_calls_at_one_step_keep_their_different_metrics(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.metrics({"loss": 3.0}, 1)
        tracker.metrics({"accuracy": 0.5}, 1)
        self.expect(tracker, "loss", [(1, 3.0)])
        self.expect(tracker, "accuracy", [(1, 0.5)])

    def test_a_picture_at_or_below_the_last_step_is_ignored(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        for step in (0, 10, 10, 5, 20):
            tracker.images("synthetic", picture(step), step)
        kept = self.picture_steps(tracker, "synthetic")
        assert kept is None or kept == [0, 10, 20]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_metric_that_is_not_finite_raises_and_nothing_of_the_call_is_kept(
        self, tmp_path: Path, value: float
    ) -> None:
        tracker = self.make(tmp_path)
        tracker.metrics({"accuracy": 0.4}, 3)
        with pytest.raises(NonFiniteError, match=r"'loss'.*step 4"):
            tracker.metrics({"accuracy": 0.5, "loss": value}, 4)
        self.expect(tracker, "accuracy", [(3, 0.4)])

    def test_a_pickled_tracker_goes_on_where_the_first_stopped(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.metrics({"loss": 3.0}, 10)
        copy: Tracker = pickle.loads(pickle.dumps(tracker))
        copy.metrics({"loss": 9.0}, 10)
        copy.metrics({"loss": 2.0}, 11)
        self.expect(copy, "loss", [(10, 3.0), (11, 2.0)])

    def test_closing_twice_is_fine(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.close("FAILED")
        tracker.close()

    def test_nested_params_are_taken_and_may_be_repeated(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        for _ in range(2):
            tracker.params({"data": {"image_size": 32}, "test_source": None, "seed": 0})

    def test_a_picture_of_another_type_or_shape_is_refused(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        for wrong in (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8)):
            with pytest.raises(TrackingError, match=r"uint8 \(3, H, W\)"):
                tracker.images("synthetic", wrong, 0)
