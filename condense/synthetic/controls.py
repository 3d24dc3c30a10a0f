"""Makes the controls that a condensed set is compared with: real images, chosen or compressed without condensation.

Each function takes the real images of a slice's classes and gives (C, ipc, channels, H, W) uint8. It treats every class
by itself, so that each worker makes the controls of its own classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from condense import seeding
from condense.pixels import to_float

JPEG_QUALITIES = range(1, 96)


def random_real(real: Sequence[Tensor], classes: range, ipc: int, *, seed: int) -> Tensor:
    """Chooses `ipc` random images of each class."""
    chosen = []
    for label, images in zip(classes, real, strict=True):
        order = torch.randperm(len(images), generator=seeding.generator(seed, "random-real", index=label))
        chosen.append(images[order[:ipc].to(images.device)])
    return torch.stack(chosen)


def kmeans_real(real: Sequence[Tensor], classes: range, ipc: int, *, seed: int) -> Tensor:
    """Chooses the real images nearest to the `ipc` k-means centres of each class, in pixel space; no image twice."""
    chosen = []
    for label, images in zip(classes, real, strict=True):
        points = to_float(images).flatten(1).cpu().numpy()
        state = seeding.derived_seed(seed, "kmeans-real", index=label) & 0x7FFFFFFF
        centres = MiniBatchKMeans(ipc, random_state=state, n_init=3, batch_size=1024).fit(points).cluster_centers_
        distances = torch.cdist(torch.from_numpy(centres).float(), torch.from_numpy(points))
        picks: list[int] = []
        for row in distances:
            row[picks] = torch.inf
            picks.append(int(row.argmin()))
        chosen.append(images[torch.tensor(picks, device=images.device)])
    return torch.stack(chosen)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compresses uint8 images (..., C, H, W) by JPEG at `quality` 1..95, and decodes them."""
    flat = images.flatten(0, -4).cpu().numpy()
    decoded = np.stack([_through_jpeg(image, quality) for image in flat])
    return torch.from_numpy(decoded).view(images.shape).to(images.device)


def jpeg_at_bits(images: Tensor, target: float, mean_bits: Callable[[Tensor], float]) -> tuple[Tensor, int]:
    """Returns the images at the highest JPEG quality whose mean bits per dim stay at or below `target`.

    Args:
        images: uint8 (C, ipc, channels, H, W).
        target: bits per dim.
        mean_bits: bits per dim of such images, over all workers.

    Returns:
        The compressed images and the quality; quality 1 where even that costs more than `target`.
    """
    low, high = JPEG_QUALITIES.start, JPEG_QUALITIES.stop  # bisection: bits grow with quality
    while high - low > 1:
        middle = (low + high) // 2
        if mean_bits(jpeg(images, middle)) <= target:
            low = middle
        else:
            high = middle
    return jpeg(images, low), low


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer))
    return decoded[None] if len(image) == 1 else decoded.transpose(2, 0, 1)
