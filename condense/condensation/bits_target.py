"""Finds the weight of the bits with which a run ends at a wanted mean of bits per dim.

It takes a few whole attempts, each with one weight. The bits at the end of a run fall steadily with the logarithm of
the weight, so few are needed, and the set is the one that its weight makes.

A weight that changes during one run does not work. Measured on digits, 50 outer steps: until two thirds of a run, the
noise of the image learning rate costs 5 bits per dim at any weight (5.3, 5.0 and 4.8 half way for weights 1, 10 and
100, which end at 3.0, 2.3 and 1.6). After that, the rate has fallen too far for a new weight to matter. Controllers
that changed the weight as the bits came in ended 3 to 40 % off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from condense.workers.checkpoints import Checkpoint, State

START = 10.0  # first weight: the middle of what has been useful
SLOPE = -0.25  # d log bits / d log weight, before two attempts have shown it; digits: -0.05 to -0.3
SLOPES = (-1.0, -0.04)  # believed of two attempts, whose bits are noisy
STEP = 2.5  # the most that log weight moves beyond what was tried
TOLERANCE = 0.015  # of the target: an attempt that ends so near is the last
ATTEMPTS = 6
LEAST = 0.01  # a set that costs less than the target at this weight costs less without any


@dataclass
class WeightSearch:
    """The attempts of one run. Every worker has the same.

    The next weight is a secant step in log weight and log bits, between the nearest attempts above and below the target
    where there are both.

    Attributes:
        target: wanted mean bits per dim.
        tried: weight, and mean bits per dim at the end, of each attempt.
    """

    target: float
    tried: list[tuple[float, float]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the last attempt is the result."""
        if not self.tried:
            return False
        weight, bits = self.tried[-1]
        at_target = abs(bits / self.target - 1) <= TOLERANCE or (weight <= LEAST and bits <= self.target)
        return at_target or len(self.tried) >= ATTEMPTS

    @property
    def weight(self) -> float:
        """The weight of the next attempt."""
        if not self.tried:
            return START
        points = [(math.log(weight), math.log(max(bits, 1e-6) / self.target)) for weight, bits in self.tried]
        above = [point for point in points if point[1] > 0]
        below = [point for point in points if point[1] <= 0]
        if above and below:
            (x0, y0), (x1, y1) = min(above, key=lambda point: point[1]), max(below, key=lambda point: point[1])
            return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))
        x, y = max(points) if above else min(points)  # the end of what was tried, on the side of the target
        slope = SLOPE
        if len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            slope = min(SLOPES[1], max(SLOPES[0], (y1 - y0) / (x1 - x0)))
        return math.exp(x - min(STEP, max(-STEP, y / slope)))

    def state(self) -> State:
        """Returns the attempts."""
        kept: dict[str, float] = {}
        for number, (weight, bits) in enumerate(self.tried):
            kept |= {f"attempt.{number}.weight": weight, f"attempt.{number}.bits": bits}
        return State(scalars=kept)

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over the attempts that `state` gave."""
        self.tried, scalars = [], checkpoint.scalars
        while (number := len(self.tried)) < ATTEMPTS and f"attempt.{number}.bits" in scalars:
            self.tried.append((scalars[f"attempt.{number}.weight"], scalars[f"attempt.{number}.bits"]))
