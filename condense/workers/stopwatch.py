"""Measures how long each part of a step takes, on a CPU or a GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by part of a step.

    On a GPU these lie between events that it passes, and nobody waits for them until `settle`.

    `running` is the part that is under way, or that an error ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = ""
        self._passed: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the enclosed block to `name`; on a GPU, as soon as `settle` is called."""
        self.running = name
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record(torch.cuda.current_stream(self.device))
            yield
            last.record(torch.cuda.current_stream(self.device))
            self._passed.append((name, first, last))
        else:
            started = time.perf_counter()
            yield
            self.seconds[name] += time.perf_counter() - started

    def settle(self) -> None:
        """Waits for the parts that a GPU has not ended yet, and adds their time."""
        for name, first, last in self._passed:
            last.synchronize()
            self.seconds[name] += first.elapsed_time(last) / 1000
        self._passed.clear()
