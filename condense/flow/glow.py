"""Glow: a multi-scale flow of affine couplings, with a conditional base of logistic mixtures.

Kingma, Dhariwal 2018, figure 2. Each level squeezes 2x2, applies K steps of ChannelMixing and AffineCoupling, and
factors out half of the channels; the last level keeps all. What is factored out has a density that is conditioned on
what continues. Ours is a mixture of logistics where Glow has a Gaussian.

    ln p(x) = sum over levels of ln p(z_l | h_l) + sum over layers of ln |det dz/dx|
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from condense.flow.architecture import Bijection, Flow, FlowDescription
from condense.flow.layers import AffineCoupling, ChannelMixing, LogisticMixture, squeeze, unsqueeze


class Step(nn.Module):
    """ChannelMixing, then AffineCoupling."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mixing = ChannelMixing(channels)
        self.coupling = AffineCoupling(channels, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to z of the same shape and each position's log-determinant (N, H, W)."""
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


class Glow(Flow):
    """See the module's docstring.

    Args:
        description: the architecture.
    """

    def __init__(self, description: FlowDescription) -> None:
        super().__init__(description)
        levels = []
        channels: int = description.channels
        for level in range(description.levels):
            channels *= 4
            last = level == description.levels - 1
            levels.append(Level(channels, description, last=last))
            channels //= 1 if last else 2
        self._levels = nn.ModuleList(levels)
        self.to(memory_format=torch.channels_last)

    @property
    def levels(self) -> list[Level]:
        """The levels, finest first."""
        return cast(list[Level], list(self._levels))

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """x (N, C, H, W) to the latents of each level, first level first, and the log-determinants (N,)."""
        latents, _, found = self._encode(x)
        return latents, torch.stack([log_abs_det.sum(dim=(1, 2)) for log_abs_det in found]).sum(0)

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Returns the latents of each level back to x (N, C, H, W): the inverse of `encode`."""
        h = latents[-1]
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            if level.continuing:
                h = torch.cat([h, latents[number]], dim=1)
            for step in reversed(level.steps):
                h = step.inverse(h)
            h = unsqueeze(h)
        return h

    def terms(self, x: Tensor) -> list[Tensor]:
        """ln p(x) by position and level: (N, H / 2^l, W / 2^l) for l = 1, 2, ..."""
        latents, contexts, found = self._encode(x)
        return [
            term + level.base.log_prob(z, context)
            for level, z, context, term in zip(self.levels, latents, contexts, found, strict=True)
        ]

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

    def fold_(self) -> None:
        """Keeps every ChannelMixing as one constant map."""
        for module in self.modules():
            if isinstance(module, ChannelMixing):
                module.fold_()

    def bijections(self, x: Tensor) -> Iterator[tuple[Bijection, Tensor]]:
        """Yields each step with its input at one place of x (1, C, H, W)."""
        h = x
        for level in self.levels:
            h = squeeze(h)
            for step in level.steps:
                yield lambda y, step=step: _summed(step(y)), h[:, :, :1, :1]  # type: ignore[misc]
                h, _ = step(h)
            h = h[:, : level.continuing]

    def _encode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
        """Latents, contexts, and the log-determinants of each position (N, h, w), all by level."""
        h = x.contiguous(memory_format=torch.channels_last)
        latents: list[Tensor] = []
        contexts: list[Tensor | None] = []
        found: list[Tensor] = []
        for level in self.levels:
            h = squeeze(h)
            log_abs_det = torch.zeros_like(h[:, 0])
            for step in level.steps:
                h, time_step = step(h)
                log_abs_det = log_abs_det + time_step
            found.append(log_abs_det)
            if level.continuing:
                h, z = h[:, : level.continuing], h[:, level.continuing :]
                contexts.append(h)
            else:
                z = h
                contexts.append(None)
            latents.append(z)
        return latents, contexts, found


def _summed(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    z, log_abs_det = result
    return z, log_abs_det.sum((1, 2))
