"""Running out of memory, told as the setting that needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from condense.errors import CapacityError

TESTING = "testing learners"

# What each part of a run holds at its peak; the parts are those of the engine's stopwatch.
LOWER = {
    "network training": "matching.learner_batch, matching.learner_images or network.width",
    "real gradients": "matching.real_batch or network.width (matching.precision=bfloat16 takes half)",
    "matching": "network.width, images_per_class or images.factor, or set more workers, which share the classes",
    "bits": "images_per_class, or take a smaller flow (bits_precision=bfloat16 takes half)",
    "communication": "images_per_class, or set more workers, which share the classes",
    "image update": "images_per_class, or set more workers, which share the classes",
    TESTING: "evaluation.learners, evaluation.validation_learners or network.width",
}


@contextmanager
def explain_out_of_memory(part: Callable[[], str]) -> Iterator[None]:
    """An allocation that fails in the enclosed block becomes a CapacityError that says which settings to lower.

    Args:
        part: the part of the run that was under way, a key of LOWER.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise CapacityError(
            f"out of memory in {part()}: {reason}",
            f"lower {LOWER[part()]}; `condense estimate CONFIG` says what a config needs."
            " The last checkpoint is intact",
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU (torch.OutOfMemoryError), or the machine for a tensor of the CPU, refused memory."""
    # PyTorch's CPU allocator raises a plain RuntimeError with its name in it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
