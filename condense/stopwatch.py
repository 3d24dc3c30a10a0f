"""Where the time of an outer step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by part of the step; waits for the device at each boundary so that the parts are honest.

    `running` is the part that is under way, or that an error ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the enclosed block to `name`."""
        started = time.perf_counter()
        self.running = name
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - started
