"""Tells one set of real images from another, by a digest of each class and one of them all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from condense.data.sources import LabelledImages


def class_digests(data: LabelledImages) -> dict[int, str]:
    """Digests each class that `data` holds by SHA-256: its name, shape and image bytes in order.

    Workers that hold some classes each digest theirs; `combine_digests` of all of them is the digest of the dataset.
    """
    digests = {}
    for label in torch.unique(data.labels).tolist():
        images = data.images[data.labels == label].contiguous()
        digest = hashlib.sha256(f"{label}/{data.class_names[label]}/{tuple(images.shape)}/".encode())
        digest.update(images.numpy().data)
        digests[int(label)] = digest.hexdigest()
    return digests


def combine_digests(digests: Mapping[int, str]) -> str:
    """Combines the digests of classes, in label order, to one SHA-256."""
    return hashlib.sha256("".join(f"{label}:{digests[label]}\n" for label in sorted(digests)).encode()).hexdigest()
