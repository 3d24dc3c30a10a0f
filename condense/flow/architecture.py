"""Defines what every flow is: its description, its methods, and its identity.

    ln p(x) = sum over levels l and positions of terms_l        (nats)

An architecture says what its terms are. The density, its map over the image and the check of its exactness follow from
them. The architectures are in registry.py.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from condense.settings import Settings
from condense.settings import digest as settings_digest

# x (N, C, h, w) to z of as many dimensions and the log-determinants (N,).
Bijection = Callable[[Tensor], tuple[Tensor, Tensor]]


class FlowDescription(Settings):
    """Describes a flow: everything that rebuilds its modules. The weights are beside it."""

    architecture: str = "glow"
    """glow, or autoregressive, which gives fewer bits from fewer CPU-seconds and measures more slowly."""
    channels: Literal[1, 3] = 3
    """Channels of the images."""
    image_size: Literal[16, 32, 64, 128] = 32
    """Side of the images."""
    levels: int = Field(default=3, ge=1, le=6)
    """Levels of a glow."""
    steps: int = Field(default=8, ge=1, le=64)
    """Steps of each level of a glow (the papers' K); residual blocks of an autoregressive flow."""
    hidden: int = Field(default=64, ge=1, le=1024)
    """Width of the networks."""
    components: int = Field(default=3, ge=1, le=32)
    """Logistics in the base density's mixtures."""

    @model_validator(mode="after")
    def _last_level_has_pixels(self) -> FlowDescription:
        if self.image_size >> self.levels < 2:
            raise ValueError(
                f"{self.levels} levels halve a side of {self.image_size} to less than 2 pixels: take fewer"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """Returns plain values, as files hold them and digests are taken of them.

        Glow is not named: it was the only architecture when the first files were written, and a digest is an identity.
        """
        values = self.model_dump(mode="json")
        del values["architecture" if self.architecture == "glow" else "levels"]
        return values


class Flow(nn.Module, ABC):
    """Defines an exact density of images and its bijection to latents; a member of the Density seam (bits.py).

    Args:
        description: of this architecture.
    """

    def __init__(self, description: FlowDescription) -> None:
        super().__init__()
        self.description = description
        self._frozen_digest: str | None = None

    @abstractmethod
    def terms(self, x: Tensor) -> list[Tensor]:
        """Returns what each position of each level adds to ln p(x), in nats: (N, H / 2^l, W / 2^l) for l = 1, 2, ..."""

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps x (N, C, H, W) to the latents of each level, first level first, and the log-determinants (N,)."""

    @abstractmethod
    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Maps the latents of each level back to x (N, C, H, W): the inverse of `encode`."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Maps x (N, C, H, W) to its latents and back: to x itself, but for rounding, where the flow is exact."""
        return self.decode(self.encode(x)[0])

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draws x (count, C, H, W). Values outside [-1/2, 1/2) are possible and have no 8-bit image.

        `temperature` scales the spread of the base density.
        """

    @abstractmethod
    def initialise_(self, x: Tensor, generator: torch.Generator) -> None:
        """Sets what has a good start in the data, from the first batch x (N, C, H, W)."""

    @abstractmethod
    def bijections(self, x: Tensor) -> Iterator[tuple[Bijection, Tensor]]:
        """Yields layers with their inputs at one place of x (1, C, H, W), each small enough for its whole Jacobian."""

    def fold_(self) -> None:
        """Stores what is constant once training is over. It does nothing, unless an architecture has such constants."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it is a density of."""
        d = self.description
        return d.channels, d.image_size, d.image_size

    @property
    def digest(self) -> str:
        """SHA-256 over the description and every tensor, the identity of the yardstick."""
        return self._frozen_digest or tensors_digest(self.description.plain(), self.state_dict())

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns ln p(x) in nats, (N,), for x (N, C, H, W) in [-1/2, 1/2); differentiable in x."""
        return torch.stack([term.sum(dim=(1, 2)) for term in self.terms(x)]).sum(0)

    @torch.no_grad()
    def log_prob_map(self, x: Tensor) -> Tensor:
        """Returns nats per pixel, (N, H, W), which add up to `log_prob`; bits_map.py says what belongs to a pixel."""
        total = x.new_zeros(len(x), *x.shape[2:])
        for level, term in enumerate(self.terms(x), start=1):
            side = 1 << level
            total = total + term.repeat_interleave(side, 1).repeat_interleave(side, 2) / side**2
        return total

    def forward(self, x: Tensor) -> Tensor:
        """Does the same as `log_prob`."""
        return self.log_prob(x)

    def freeze_(self) -> Flow:
        """Ends training: parameters have no gradient, constants are folded, the digest is fixed."""
        self.eval().requires_grad_(False)
        self.fold_()
        self._frozen_digest = None
        self._frozen_digest = self.digest
        return self


def tensors_digest(description: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Digests a description and named tensors by SHA-256: names, types, shapes and bytes."""
    hashed = hashlib.sha256(settings_digest(description).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        hashed.update(tensor.numpy().tobytes())
    return hashed.hexdigest()
