"""Says which sets are better than others: fronts, hypervolume, the knee, and the single number of each mode.

Every set is a point (accuracy, bits): validation accuracy in percent, to be high, and the bits of the whole set, the
sum over its images, to be low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]
Mode = Literal["front", "best-under-budget", "target-accuracy"]

# Above the log2 of any set's kilobits, so that a set which misses the wanted accuracy never beats one that reaches it.
MISSED = 64.0


@dataclass(frozen=True)
class Point:
    """One set: validation accuracy in percent, bits of the whole set."""

    accuracy: float
    bits: float


def dominates(one: Point, other: Point, *, margin: float = 0.0) -> bool:
    """Returns whether `one` is at least as good in both and better in one, by at least `margin` points of accuracy."""
    at_least = one.accuracy >= other.accuracy + margin and one.bits <= other.bits
    return at_least and (one.accuracy > other.accuracy or one.bits < other.bits)


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that none dominates, by rising bits; of equal points the first."""
    order = sorted(range(len(points)), key=lambda index: (points[index].bits, -points[index].accuracy, index))
    members: list[int] = []
    for index in order:
        if not members or points[index].accuracy > points[members[-1]].accuracy:
            members.append(index)
    return members


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area between the front and a reference that is worse than every point counted: percent times bits."""
    inside = [point for point in points if point.accuracy > reference.accuracy and point.bits < reference.bits]
    members = [inside[index] for index in front(inside)]
    ends = [member.bits for member in members[1:]] + [reference.bits]
    return sum((end - m.bits) * (m.accuracy - reference.accuracy) for m, end in zip(members, ends, strict=True))


def knee(points: Sequence[Point]) -> int:
    """Index of the front's member farthest above the line between its ends, accuracy against the logarithm of bits.

    Both axes are scaled to the front's own range; of equals, and of a front of two, the more accurate one.
    """
    members = front(points)
    low, high = points[members[0]], points[members[-1]]
    if len(members) == 1:
        return members[0]

    def above(index: int) -> tuple[float, float]:
        rise = (points[index].accuracy - low.accuracy) / (high.accuracy - low.accuracy)
        run = math.log(points[index].bits / low.bits) / math.log(high.bits / low.bits)
        return round(rise - run, 9), points[index].accuracy

    return max(members, key=above)


@dataclass(frozen=True)
class Aim:
    """What a search asks for: a mode and its number.

    mode: "front" is both objectives; "best-under-budget" the most accurate set under `kilobits`; "target-accuracy" the
        set of fewest bits at `accuracy` percent or more.
    """

    mode: Mode = "front"
    kilobits: float | None = None
    accuracy: float | None = None

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of `values`, in Optuna's words."""
        if self.mode == "front":
            return ("maximize", "minimize")
        return ("maximize",) if self.mode == "best-under-budget" else ("minimize",)

    def values(self, point: Point) -> tuple[float, ...]:
        """Returns what the sampler optimises.

        A set over the budget scores minus the octaves it is over, below any accuracy. A set that reaches the accuracy
        scores log2 of its kilobits; one that misses it scores `MISSED` plus the missing points.
        """
        if self.mode == "best-under-budget":
            assert self.kilobits is not None
            over = math.log2(point.bits / (1000 * self.kilobits))
            return (point.accuracy if over <= 0 else -over,)
        if self.mode == "target-accuracy":
            assert self.accuracy is not None
            missing = self.accuracy - point.accuracy
            return (math.log2(point.bits / 1000) if missing <= 0 else MISSED + missing,)
        return (point.accuracy, point.bits)

    def allows(self, point: Point) -> bool:
        """Returns whether the point keeps within the mode's number."""
        if self.kilobits is not None:
            return point.bits <= 1000 * self.kilobits
        return self.accuracy is None or point.accuracy >= self.accuracy

    def best(self, points: Sequence[Point]) -> int | None:
        """Index of the point for the alias `best`: the knee, or what the mode asks; None where none will do."""
        allowed = [index for index, point in enumerate(points) if self.allows(point)]
        if not allowed:
            return None
        if self.mode == "best-under-budget":
            return max(allowed, key=lambda index: (points[index].accuracy, -points[index].bits))
        if self.mode == "target-accuracy":
            return min(allowed, key=lambda index: (points[index].bits, -points[index].accuracy))
        return knee(points)
