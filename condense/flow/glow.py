"""The flow: a multi-scale Glow (Kingma, Dhariwal 2018, figure 2) with a conditional logistic-mixture base.

Each level squeezes 2x2, applies K steps of ChannelMixing and AffineCoupling, and, but for the last level, factors out
half of the channels. What is factored out has a density conditioned on what continues, where Glow's is a Gaussian.

    ln p(x) = sum over levels of ln p(z_l | h_l) + sum over layers of ln |det dz/dx|
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from condense.flow.layers import AffineCoupling, ChannelMixing, LogisticMixture, squeeze, unsqueeze
from condense.settings import Settings
from condense.settings import digest as settings_digest


class FlowDescription(Settings):
    """Everything that rebuilds a flow's modules; the weights are beside it."""

    channels: Literal[1, 3] = 3
    image_size: Literal[16, 32, 64, 128] = 32
    levels: int = Field(default=3, ge=1, le=6)
    steps: int = Field(default=8, ge=1, le=64)  # K, at each level
    hidden: int = Field(default=64, ge=1, le=1024)  # width of the coupling networks
    components: int = Field(default=3, ge=1, le=32)  # logistics in the base density

    @model_validator(mode="after")
    def _last_level_has_pixels(self) -> FlowDescription:
        if self.image_size >> self.levels < 2:
            raise ValueError(
                f"{self.levels} levels halve a side of {self.image_size} to less than 2 pixels: take fewer"
            )
        return self


class Step(nn.Module):
    """ChannelMixing, then AffineCoupling."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mixing = ChannelMixing(channels)
        self.coupling = AffineCoupling(channels, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to z of the same shape and the log-determinants (N,)."""
        mixed, log_abs_det = self.mixing(x)
        z, coupled = self.coupling(mixed)
        return z, log_abs_det + coupled

    def inverse(self, z: Tensor) -> Tensor:
        """z (N, C, H, W) back to x."""
        return self.mixing.inverse(self.coupling.inverse(z))


class Level(nn.Module):
    """K steps on squeezed channels, and the base density of what stops here."""

    def __init__(self, channels: int, description: FlowDescription, *, last: bool) -> None:
        super().__init__()
        self.continuing = 0 if last else channels // 2
        self._steps = nn.ModuleList(Step(channels, description.hidden) for _ in range(description.steps))
        self.base = LogisticMixture(
            channels - self.continuing, self.continuing, description.hidden, description.components
        )

    @property
    def steps(self) -> list[Step]:
        """The K steps, first applied first."""
        return cast(list[Step], list(self._steps))


class Flow(nn.Module):
    """An exact density of images; a member of the Density seam (see bits.py).

    Args:
        description: the architecture.
    """

    def __init__(self, description: FlowDescription) -> None:
        super().__init__()
        self.description = description
        levels = []
        channels: int = description.channels
        for level in range(description.levels):
            channels *= 4
            last = level == description.levels - 1
            levels.append(Level(channels, description, last=last))
            channels //= 1 if last else 2
        self._levels = nn.ModuleList(levels)
        self._frozen_digest: str | None = None
        self.to(memory_format=torch.channels_last)

    @property
    def levels(self) -> list[Level]:
        """The levels, finest first."""
        return cast(list[Level], list(self._levels))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it is a density of."""
        d = self.description
        return d.channels, d.image_size, d.image_size

    @property
    def digest(self) -> str:
        """SHA-256 over the description and every tensor: the identity of the yardstick."""
        return self._frozen_digest or tensors_digest(self.description.model_dump(), self.state_dict())

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """x (N, C, H, W) to the latents of each level, first level first, and the log-determinants (N,)."""
        latents, _, log_abs_det = self._encode(x)
        return latents, log_abs_det

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """The latents of each level back to x (N, C, H, W): the inverse of `encode`."""
        h = latents[-1]
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            if level.continuing:
                h = torch.cat([h, latents[number]], dim=1)
            for step in reversed(level.steps):
                h = step.inverse(h)
            h = unsqueeze(h)
        return h

    def log_prob(self, x: Tensor) -> Tensor:
        """ln p(x) in nats, (N,), for x (N, C, H, W) in [-1/2, 1/2); differentiable in x."""
        latents, contexts, log_abs_det = self._encode(x)
        for level, z, context in zip(self.levels, latents, contexts, strict=True):
            log_abs_det = log_abs_det + level.base.log_prob(z, context)
        return log_abs_det

    @torch.no_grad()
    def log_prob_map(self, x: Tensor) -> Tensor:
        """Nats per pixel, (N, H, W), which add up to `log_prob`; bits_map.py says what belongs to a pixel."""
        total = x.new_zeros(len(x), *x.shape[2:])
        h = x
        for number, level in enumerate(self.levels):
            h = squeeze(h)
            terms = x.new_zeros(len(x), *h.shape[2:])
            for step in level.steps:
                h, log_abs_det = step.mixing(h)
                terms = terms + step.coupling.log_abs_det_map(h) + log_abs_det / terms[0].numel()
                h, _ = step.coupling(h)
            context = h[:, : level.continuing] if level.continuing else None
            terms = terms + level.base.log_prob_map(h[:, level.continuing :], context)
            h = h if context is None else context
            side = 2 ** (number + 1)
            total += (terms / side**2).repeat_interleave(side, 1).repeat_interleave(side, 2)
        return total

    def forward(self, x: Tensor) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """(count, C, H, W) draws x; values outside [-1/2, 1/2) are possible and have no 8-bit image."""
        side = self.description.image_size >> len(self.levels)
        reference = next(self.parameters())
        h: Tensor | None = None
        for level in reversed(self.levels):
            channels = level.base.constant.shape[0] // (3 * level.base.components)
            like = reference.new_empty(count, channels, side, side)
            z = level.base.sample(like, h, generator, temperature)
            h = z if h is None else torch.cat([h, z], dim=1)
            for step in reversed(level.steps):
                h = step.inverse(h)
            h = unsqueeze(h)
            side *= 2
        assert h is not None
        return h

    @torch.no_grad()
    def initialise_(self, x: Tensor, generator: torch.Generator) -> None:
        """Sets every ChannelMixing from the first batch x (N, C, H, W); couplings start as identity."""
        h = x
        for level in self.levels:
            h = squeeze(h)
            for number, step in enumerate(level.steps):
                step.mixing.initialise_(h, generator, rotate=number > 0)
                h, _ = step(h)
            h = h[:, : level.continuing]

    def freeze_(self) -> Flow:
        """No more training: parameters without gradient, constants folded, the digest fixed."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, ChannelMixing):
                module.fold_()
        self._frozen_digest = None
        self._frozen_digest = self.digest
        return self

    def _encode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        h = x.contiguous(memory_format=torch.channels_last)
        log_abs_det = x.new_zeros(len(x))
        latents: list[Tensor] = []
        contexts: list[Tensor | None] = []
        for level in self.levels:
            h = squeeze(h)
            for step in level.steps:
                h, step_log_abs_det = step(h)
                log_abs_det = log_abs_det + step_log_abs_det
            if level.continuing:
                h, z = h[:, : level.continuing], h[:, level.continuing :]
                contexts.append(h)
            else:
                z = h
                contexts.append(None)
            latents.append(z)
        return latents, contexts, log_abs_det


def tensors_digest(description: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256, hexadecimal, over a description and named tensors: names, types, shapes and bytes."""
    hashed = hashlib.sha256(settings_digest(description).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        hashed.update(tensor.numpy().tobytes())
    return hashed.hexdigest()
