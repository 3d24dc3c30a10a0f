"""Searches that are as small as can be."""

from typing import Any

TINY: dict[str, Any] = {
    "source": "digits",
    "outer_steps": 6,
    "checkpoint_every": 1,
    "network": {"name": "mlp", "width": 16, "depth": 1},
    "matching": {"real_batch": 8, "updates": 1},
    "evaluation": {"every": 1, "learners": 1, "validation_images": 60},
    "workers": 0,
}
