"""Soft labels: a distribution over the classes for each synthetic image, learned with its pixels.

    v_k = exp(z_k - max z) rounded to the 8-bit grid,    label_k = v_k / sum_j v_j

That is softmax(z) within the rounding, with its gradient (straight through the rounding). The codes 255 v are one byte
for each class and image, the largest always 255. So the label that learners are taught is the one in the file, and the
one whose bits are counted. Where the logits z are far enough apart, a label is one-hot and its loss that of a hard one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from condense.errors import ConfigError
from condense.pixels import LEVELS, round_straight_through, to_uint8

Labels = Literal["hard", "soft"]

# Probability of an image's own class at first: all others have a gradient, and up to 57 classes a code too.
START = 0.9
CODE_BITS = 8  # of the code of one class in one image's label


def check_labels(labels: Labels, objective: str) -> None:
    """Refuses soft labels where nothing learns them.

    Raises:
        ConfigError: naming both keys.
    """
    if labels == "soft" and objective == "distribution":
        raise ConfigError(
            "objective distribution compares embeddings, in which images.labels=soft has no labels to learn",
            "set objective=gradient, or images.labels=hard",
        )


def initial_logits(classes: range, ipc: int, class_count: int, start: Tensor | None = None) -> Tensor:
    """Returns logits (len(classes), ipc, class_count) of labels that give START to their own class, the rest to all
    others.

    Args:
        classes: of the images, one a row.
        ipc: images per class.
        class_count: classes of the whole set.
        start: soft labels to start from instead, (len(classes), ipc, class_count).
    """
    if start is not None:
        never = 0.25 / (LEVELS - 1)  # rounds to code 0
        return (start / start.amax(2, keepdim=True)).clamp_min(never).log()
    own = math.log(START * max(class_count - 1, 1) / (1 - START))
    rows = torch.zeros((len(classes), ipc, class_count))
    for row, label in zip(rows, classes, strict=True):
        row[:, label] = own
    return rows


def soft_labels(logits: Tensor) -> Tensor:
    """Returns distributions over the last dimension of the logits; differentiable in them."""
    values = round_straight_through(_relative(logits))
    return values / values.sum(-1, keepdim=True)


def label_codes(logits: Tensor) -> Tensor:
    """Returns the bytes of `soft_labels`, uint8 of the logits' shape."""
    return to_uint8(_relative(logits))


def from_codes(codes: Tensor) -> Tensor:
    """Returns the float32 distributions whose bytes `label_codes` gave.

    They are the same on any device: sums of bytes are exact.
    """
    values = codes.to(torch.float32)
    return values / values.sum(-1, keepdim=True)


def label_bits(labels: Tensor | None) -> int:
    """Returns what a set's soft labels (N, classes) cost: CODE_BITS for each class and image; 0 without them.

    A hard label costs nothing here: a set has as many images of each class, in order.
    """
    return 0 if labels is None else CODE_BITS * labels.numel()


def _relative(logits: Tensor) -> Tensor:
    """Returns probabilities in relation to the largest one. That needs no sum that could vanish in the rounding."""
    return (logits - logits.detach().amax(-1, keepdim=True)).exp()
