"""When a run's outer steps end, and how far the image learning rate has come on its way there.

A run does `outer_steps` of them, unless its validation curve settles (`evaluation.patience`) or it has a
`time_budget_s`. An end that moves bends the schedule: from where it is, the phase goes on evenly to 1 at the new end,
so that the rate of the images has always come down when a run ends.
"""

from __future__ import annotations

import math

GAIN = 0.5  # points of validation accuracy that are progress
SAVING = 0.99  # or bits per dim at most this share of the fewest before
COOLDOWN = 0.2  # of the steps done: what a settled run still does while its rate comes down

REASONS = ("outer_steps", "settled", "time")  # why a run ends where it does
_PREFIX = "schedule."


class Schedule:
    """The end of a run, which may move, and the phase of its learning rate.

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
        """The share of the way that lies behind, 0 to 1, at an image update of the run; `updates`: of an outer step."""
        behind = (update - self.bend * updates) / ((self.total - self.bend) * updates)
        return self.phase_there + (1 - self.phase_there) * behind

    def end_at_(self, done: int, total: int) -> None:
        """After `done` outer steps: the run ends at `total`."""
        if total != self.total and done < self.total:
            self.bend, self.phase_there = done, self.phase(done, 1)
        self.total = total

    def time_left_(self, done: int, seconds: float, spent: float, steps: int) -> None:
        """After `done` outer steps: as many more as the seconds hold, at the pace of `steps` that took `spent`.

        A settled run's end only comes nearer.
        """
        total = done + max(0, math.floor(seconds * steps / spent))
        if self.why != "settled":
            self.why = "time"
        elif total >= self.total:
            return
        self.end_at_(done, total)

    def follow_(self, done: int, accuracy: float, bits: float | None) -> None:
        """An evaluation after `done` outer steps: validation percent, bits per dim; may bring the end nearer.

        A curve has settled where over `patience` evaluations neither accuracy rose by GAIN points nor bits fell below
        SAVING of what was best before.
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

    def scalars(self) -> dict[str, float]:
        """For a checkpoint."""
        values = {"total": self.total, "bend": self.bend, "phase": self.phase_there, "why": REASONS.index(self.why)}
        for number, (accuracy, bits) in enumerate(self.followed):
            values |= {f"accuracy.{number}": accuracy, f"bits.{number}": bits}
        return {_PREFIX + name: float(value) for name, value in values.items()}

    def restore_(self, scalars: dict[str, float]) -> None:
        """Takes over what `scalars` gave, if it is there."""
        values = {name.removeprefix(_PREFIX): value for name, value in scalars.items() if name.startswith(_PREFIX)}
        if not values:
            return
        self.total, self.bend, self.phase_there = int(values["total"]), int(values["bend"]), values["phase"]
        self.why = REASONS[int(values["why"])]
        count = sum(name.startswith("accuracy.") for name in values)
        self.followed = [(values[f"accuracy.{number}"], values[f"bits.{number}"]) for number in range(count)]
