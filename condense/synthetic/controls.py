"""Makes the controls that a condensed set is compared with: real images, chosen or compressed without condensation.

Each function takes the real images of a slice's classes and gives (C, ipc, channels, H, W) uint8. It treats every class
by itself, so that each worker makes the controls of its own classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from condense import seeding
from condense.pixels import to_float, to_uint8

JPEG_QUALITIES = range(1, 96)
BLUR_KERNEL = 19  # pixels: three standard deviations of the widest on either side
BLURS = (0.1, 3.0)  # standard deviations in pixels
EQUAL = 0.02  # bits within this share of the target are called equal


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


def blur(images: Tensor, deviation: float) -> Tensor:
    """Blurs uint8 images (..., C, H, W) by a Gaussian of this standard deviation in pixels, 0.1 to 3."""
    flat = to_float(images.flatten(0, -4))
    blurred: Tensor = gaussian_blur(flat, kernel_size=[BLUR_KERNEL, BLUR_KERNEL], sigma=[deviation, deviation])
    return to_uint8(blurred).view(images.shape)


@dataclass(frozen=True)
class AtBits:
    """Real images that were degraded until their bits come nearest to a target.

    images: uint8 (C, ipc, channels, H, W). strength: JPEG's quality, or the blur's standard deviation in pixels.
    bits_per_dim: of the images. reached: whether that is within 2 % of the target.
    """

    images: Tensor
    strength: float
    bits_per_dim: float
    reached: bool


def jpeg_at_bits(images: Tensor, target: float, mean_bits: Callable[[Tensor], float]) -> AtBits:
    """Returns the images as JPEG of the quality, 1 to 95, that a bisection finds nearest to `target`.

    Args:
        images: uint8 (C, ipc, channels, H, W).
        target: bits per dim.
        mean_bits: bits per dim of such images, over all workers.
    """
    low, high = JPEG_QUALITIES.start, JPEG_QUALITIES.stop - 1
    tried: dict[float, float] = {quality: mean_bits(jpeg(images, quality)) for quality in (low, high)}
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = mean_bits(jpeg(images, middle))
        low, high = (middle, high) if tried[middle] <= target else (low, middle)
    return _nearest(tried, target, lambda quality: jpeg(images, int(quality)))


def blur_at_bits(images: Tensor, target: float, mean_bits: Callable[[Tensor], float]) -> AtBits:
    """Returns the images blurred by the Gaussian that a bisection finds nearest to `target`; arguments as
    `jpeg_at_bits`.
    """
    low, high = BLURS
    tried = {deviation: mean_bits(blur(images, deviation)) for deviation in (low, high)}
    while high - low > 0.01:
        middle = round((low + high) / 2, 4)
        tried[middle] = mean_bits(blur(images, middle))
        if abs(tried[middle] - target) <= EQUAL / 4 * target:
            break
        low, high = (middle, high) if tried[middle] > target else (low, middle)  # more blur, fewer bits
    return _nearest(tried, target, lambda deviation: blur(images, deviation))


def _nearest(tried: Mapping[float, float], target: float, degrade: Callable[[float], Tensor]) -> AtBits:
    strength, bits = min(tried.items(), key=lambda found: abs(found[1] - target))
    return AtBits(degrade(strength), strength, bits, abs(bits - target) <= EQUAL * target)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer))
    return decoded[None] if len(image) == 1 else decoded.transpose(2, 0, 1)
