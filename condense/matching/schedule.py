"""Decides at which outer step a run ends, and how far the image learning rate has come down by then.

A run does `outer_steps` of them, unless its validation curve settles (`evaluation.patience`) or it has a
`time_budget_s`. Where the end moves, the phase goes on evenly from where it is to 1 at the new end. So the learning
rate of the images has always come down when a run ends.
"""

from __future__ import annotations

import math

from condense.workers.checkpoints import Checkpoint, State

GAIN = 0.5  # more points of validation accuracy than before are progress
SAVING = 0.99  # so are bits per dim of at most this share of the fewest before
COOLDOWN = 0.2  # a settled run still does this share of the steps done, while its learning rate comes down

REASONS = ("outer_steps", "settled", "time")  # why a run ends where it does
_PREFIX = "schedule."


class Schedule:
    """The end of one run, and the phase of its image learning rate.

    Attributes:
        total: outer steps of the run.
        why: what decided the end: "outer_steps", "settled" or "time".
    """

    def __init__(self, outer_steps: int, patience: int = 0) -> None:
        """patience: evaluations in a row without progress that end a run; 0 never does."""
        self.total, self.patience, self.why = outer_steps, patience, "outer_steps"
        self.bend, self.phase_there = 0, 0.0
        self.followed: list[tuple[float, float]] = []

    def phase(self, update: int, updates: int) -> float:
        """Returns the share of the run that is done, 0 to 1, at an image update; `updates`: of one outer step."""
        behind = (update - self.bend * updates) / ((self.total - self.bend) * updates)
        return self.phase_there + (1 - self.phase_there) * behind

    def end_at_(self, done: int, total: int) -> None:
        """Moves the end to `total`, after `done` outer steps."""
        if total != self.total and done < self.total:
            self.bend, self.phase_there = done, self.phase(done, 1)
        self.total = total

    def use_time_(self, done: int, seconds: float, spent: float, steps: int) -> None:
        """Moves the end to where the time is used up, after `done` outer steps.

        The end of a settled run only comes nearer.

        Args:
            done: outer steps so far.
            seconds: the time that is left for more.
            spent: the seconds that `steps` of them took.
        """
        total = done + max(0, math.floor(seconds * steps / spent))
        if self.why != "settled":
            self.why = "time"
        elif total >= self.total:
            return
        self.end_at_(done, total)

    def follow_(self, done: int, accuracy: float, bits: float | None) -> None:
        """Takes in an evaluation after `done` outer steps, which may bring the end nearer.

        The curve has settled where over `patience` evaluations neither accuracy rose by GAIN points nor bits fell below
        SAVING of what was best before.

        Args:
            done: outer steps of the set that was evaluated.
            accuracy: on validation images, percent.
            bits: mean bits per dim, or None.
        """
        if not self.patience:
            return
        self.followed.append((accuracy, 0.0 if bits is None else bits))
        before, lately = self.followed[: -self.patience], self.followed[-self.patience :]
        if not before or self.why == "settled":
            return
        better = max(row[0] for row in lately) >= max(row[0] for row in before) + GAIN
        fewer = min(row[1] for row in lately) < SAVING * min(row[1] for row in before)
        end = done + math.ceil(COOLDOWN * done)
        if not better and not fewer and end < self.total:
            self.why = "settled"
            self.end_at_(done, end)

    def state(self) -> State:
        """Returns the end, what decided it, and the curve so far."""
        values = {"total": self.total, "bend": self.bend, "phase": self.phase_there, "why": REASONS.index(self.why)}
        for number, (accuracy, bits) in enumerate(self.followed):
            values |= {f"accuracy.{number}": accuracy, f"bits.{number}": bits}
        return State(scalars={_PREFIX + name: float(value) for name, value in values.items()})

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over what `state` gave, if it is there."""
        scalars = checkpoint.scalars
        values = {name.removeprefix(_PREFIX): value for name, value in scalars.items() if name.startswith(_PREFIX)}
        if not values:
            return
        self.total, self.bend, self.phase_there = int(values["total"]), int(values["bend"]), values["phase"]
        self.why = REASONS[int(values["why"])]
        count = sum(name.startswith("accuracy.") for name in values)
        self.followed = [(values[f"accuracy.{number}"], values[f"bits.{number}"]) for number in range(count)]
