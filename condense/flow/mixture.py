"""Mixes the images that a flow is fitted to: one or several sources as one set, in the flow's channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from condense.data.config import DataConfig
from condense.data.digests import class_digests, combine_digests
from condense.data.sources import DataSource, LabelledImages, open_source
from condense.errors import ConfigError, SourceError
from condense.pixels import to_float, to_uint8
from condense.seeding import generator

Augmentation = Literal["none", "flip", "crop-flip"]

# ITU-R BT.601 luma, what Pillow's convert("L") computes.
_LUMA = (0.299, 0.587, 0.114)


class Mixture:
    """Several sources as one: their images are concatenated, so that each image is equally likely.

    Args:
        specs: as `open_source` takes them.
        data: one size for all.
        channels: of the flow; colour becomes grey by its luminance.
        seed: draws validation splits.

    Raises:
        ConfigError: no spec. SourceError: as `open_source`.
    """

    def __init__(self, specs: Sequence[str], data: DataConfig, channels: int, *, seed: int) -> None:
        if not specs:
            raise ConfigError("source names no dataset", "give one spec or a list of them")
        self._channels, self._seed = channels, seed
        self._sources: dict[str, tuple[str, DataSource]] = {}  # by a name that no other has
        for spec in specs:
            source = open_source(spec, data, seed=seed)
            taken = sum(other.name == source.name for _, other in self._sources.values())
            self._sources[f"{source.name}-{taken + 1}" if taken else source.name] = (spec, source)
        self.digests: dict[str, str] = {}  # of each source's train images, once they are loaded

    @property
    def descriptions(self) -> dict[str, dict[str, Any]]:
        """What each source says of itself, by its name."""
        return {name: source.description() for name, (_, source) in self._sources.items()}

    def train(self) -> Tensor:
        """uint8 (N, C, H, W); raises SourceError where all are of one grey level."""
        parts = []
        for name, (spec, source) in self._sources.items():
            loaded = source.load("train")
            self.digests[name] = combine_digests(class_digests(loaded))
            parts.append(self._images(loaded, spec))
        images = torch.cat(parts)
        flat = images.flatten(1)
        if bool((flat == flat[:, :1]).all()):
            specs = ", ".join(spec for spec, _ in self._sources.values())
            raise SourceError(
                f"every image of {specs} is of one grey level: there is no density to learn",
                "check the files, and that the right column or folder is read",
            )
        return images

    def validation(self, count: int) -> Tensor:
        """At most `count` seeded images of the validation splits: uint8 (N, C, H, W)."""
        parts = [self._images(source.load("validation"), spec) for spec, source in self._sources.values()]
        images = torch.cat(parts)
        return images[torch.randperm(len(images), generator=generator(self._seed, "flow-evaluation"))[:count]]

    def tests(self) -> dict[str, Tensor]:
        """Returns the test split of each source by its name, uint8 (N, C, H, W); read for the card, never to choose."""
        return {name: self._images(source.load("test"), spec) for name, (spec, source) in self._sources.items()}

    def _images(self, loaded: LabelledImages, spec: str) -> Tensor:
        return to_channels(loaded.images, self._channels, spec)


def to_channels(images: Tensor, channels: int, where: str) -> Tensor:
    """uint8 (N, C, H, W) with `channels` channels; three become one by their luminance, one never becomes three.

    Raises:
        SourceError: grey images for a flow of three channels, which would count each pixel three times.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        raise SourceError(f"{where} has grey images, the flow three channels", "set architecture.channels=1")
    weights = torch.tensor(_LUMA)[:, None, None]
    return torch.cat([to_uint8((to_float(part) * weights).sum(1, keepdim=True)) for part in torch.split(images, 4096)])


def random_batch(
    images: Tensor, count: int, augmentation: Augmentation, draws: torch.Generator, *, blended: float = 0.0
) -> Tensor:
    """`count` of the uint8 `images` (N, C, H, W), drawn with replacement and augmented: float (count, C, H, W).

    Each is, with probability `blended`, mixed with a constant, uniform noise or a repeated tile, in part or wholly:
    images where optimisers go and no photograph is. A flow that never saw any may price a grey square above a digit,
    noise at thousands of bits per dimension, and a checkerboard at millions (benchmarks/flow).
    """
    batch = to_float(images[torch.randint(len(images), (count,), generator=draws)])
    if augmentation == "crop-flip":
        batch = _shifted(batch, torch.randint(7, (count, 2), generator=draws))
    if augmentation != "none":
        flipped = torch.rand(count, generator=draws) < 0.5
        batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
    if blended:
        batch = torch.where(torch.rand((count, 1, 1, 1), generator=draws) < blended, _blends(batch, draws), batch)
    return batch


def _blends(images: Tensor, draws: torch.Generator) -> Tensor:
    """Returns each image mixed with a constant, noise or a repeated tile, rounded to 8 bits; a quarter without the
    image.
    """
    count, channels = images.shape[:2]
    constant = torch.rand((count, channels, 1, 1), generator=draws)
    noise = torch.rand(images.shape, generator=draws)
    kind = torch.rand((count, 1, 1, 1), generator=draws)
    other = torch.where(kind < 0.3, constant, torch.where(kind < 0.5, noise, _tiled(noise, draws)))
    kept = (torch.rand((count, 1, 1, 1), generator=draws) * 1.3 - 0.3).clamp_min(0)
    return to_float(to_uint8(kept * images + (1 - kept) * other))


def _tiled(noise: Tensor, draws: torch.Generator) -> Tensor:
    """Returns each image's upper left square of 2, 4 or 8 pixels a side, repeated over it.

    A third each is constant along columns, along rows, and neither; half have two levels alone, black and white.
    """
    count, side = len(noise), noise.shape[-1]
    choices = torch.randint(3, (count, 2), generator=draws).tolist()
    tiled = torch.empty_like(noise)
    for i, (size, along) in enumerate(choices):
        pixels = 2 << size
        tile = noise[i, :, :pixels, :pixels]
        tile = (tile[:, :1], tile[:, :, :1], tile)[along].expand_as(tile)
        tiled[i] = tile.repeat(1, side // pixels, side // pixels)
    two_levels = torch.rand((count, 1, 1, 1), generator=draws) < 0.5
    return torch.where(two_levels, (tiled < 0.5).to(tiled), tiled)


def _shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Random crops after 3 pixels of reflection on each side (Schirrmeister et al. 2022); offsets (N, 2) in 0..6."""
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    side = images.shape[-1]
    return torch.stack([padded[i, :, y : y + side, x : x + side] for i, (y, x) in enumerate(offsets.tolist())])
