"""An autoregressive flow over 2x2 blocks of pixels: each value has a density, given all values before it.

The blocks come in reading order. So do the four pixels of a block, and then the channels of a pixel:

    e_i = (x_i - prediction_i(x_<i)) / sigma_i          least squares, fitted to the first batch
    ln p(x) = sum_i ln f_i(e_i | x_<i) - ln sigma_i      f_i a mixture of K logistics
    z_i = logit F_i(e_i | x_<i)                          the latents: standard logistic, independent

The parameters of a pixel's mixture come from two networks: a residual network of causal 3x2 convolutions on the grid of
blocks, and a small one of the pixels before it in its block. The channels of a pixel share the K components, whose
means also move with the channels before. PixelCNN++ (Salimans et al. 2017, section 2.2) has this factorisation for
8-bit values. Here the values are dequantised, so that it is a density as every other flow is.

One pass gives the density. Its inverse goes block by block, from kept activations of the blocks before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from condense.flow.architecture import Bijection, Flow, FlowDescription
from condense.flow.causal import (
    PIXELS,
    Block,
    CausalConv2d,
    Head,
    LinearPrediction,
    Mixtures,
    activate,
    normalise,
    seen_by_network,
    with_ones,
)
from condense.flow.layers import squeeze, unsqueeze


class Autoregressive(Flow):
    """See the module's docstring.

    Args:
        description: `steps` residual blocks of width `hidden`; `components` logistics; `levels` is 1, the blocks.
    """

    def __init__(self, description: FlowDescription) -> None:
        super().__init__(description)
        channels, hidden = description.channels, description.hidden
        dims = PIXELS * channels
        self.prediction = LinearPrediction(dims)
        self.first = CausalConv2d(2 * dims + 1, hidden, 2, 3, own=False)
        self._blocks = nn.ModuleList(Block(hidden) for _ in range(description.steps))
        self.head = Head(channels, hidden, description.components)
        self.to(memory_format=torch.channels_last)

    @property
    def blocks(self) -> list[Block]:
        """The residual blocks, first applied first."""
        return cast(list[Block], list(self._blocks))

    def terms(self, x: Tensor) -> list[Tensor]:
        """Returns ln p(x) of each block, (N, H / 2, W / 2), as one level."""
        e, mixtures = self._conditionals(_blocks_of(x))
        return [mixtures.log_density(e).sum(1) - self.prediction.log_scale.sum()]

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps x (N, C, H, W) to one level of latents (N, 4 C, H / 2, W / 2), and the log-determinants (N,)."""
        e, mixtures = self._conditionals(_blocks_of(x))
        z, log_slopes = mixtures.given(e).logits(e)
        places = z[0, 0, 0].numel()
        return [z.flatten(1, 2)], log_slopes.flatten(1).sum(1) - places * self.prediction.log_scale.sum()

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Maps the latents back to x (N, C, H, W), one value after another: in minutes for large images."""
        (z,) = latents

        def block(h: Tensor, from_past: Tensor, row: int, column: int) -> Tensor:
            wanted = self._by_pixel(z[:, :, row : row + 1, column : column + 1])
            y = torch.zeros_like(from_past)
            for value in range(y.shape[1]):
                e = self.prediction.errors(y, from_past)
                found = self.head(h, y, e).given(self._by_pixel(e)).inverse(wanted).flatten(1, 2)
                y[:, value] += ((found - e) * self.prediction.scale)[:, value]
            return y

        return self._in_order(len(z), block)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Computes each value from its latent and the true values before it, all at once.

        By induction over the values, `decode` gives x back if this does.
        """
        y = _blocks_of(x)
        e, mixtures = self._conditionals(y)
        conditional = mixtures.given(e)
        found = conditional.inverse(conditional.logits(e)[0]) - e
        return unsqueeze(y + found.flatten(1, 2) * self.prediction.scale)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draws x (count, C, H, W). Values outside [-1/2, 1/2) are possible and have no 8-bit image."""

        def uniform(*shape: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
            return drawn.clamp(1e-5, 1 - 1e-5)

        like, channels = self.prediction.bias, self.shape[0]

        def block(h: Tensor, from_past: Tensor, row: int, column: int) -> Tensor:
            y = torch.zeros_like(from_past)
            for pixel in range(PIXELS):
                component: Tensor | None = None
                for value in range(pixel * channels, (pixel + 1) * channels):
                    e = self.prediction.errors(y, from_past)
                    weights, means, log_scales = self.head(h, y, e)
                    if component is None:  # Gumbel's maximum, one for the channels of a pixel
                        noise = -(-uniform(count, 1, self.description.components, 1, 1).log()).log()
                        component = (weights[:, pixel] + noise).argmax(2, keepdim=True)
                    mean, log_scale = (
                        part[:, pixel, value % channels].gather(1, component[:, 0])[:, 0]
                        for part in (means, log_scales)
                    )
                    drawn = mean + temperature * log_scale.exp() * uniform(count, 1, 1).logit()
                    y[:, value] += (drawn - e[:, value]) * self.prediction.scale[value]
            return y

        return self._in_order(count, block)

    @torch.no_grad()
    def initialise_(self, x: Tensor, generator: torch.Generator) -> None:
        """Fits the linear prediction to the first batch x (N, C, H, W)."""
        self.prediction.initialise_(_blocks_of(x))

    def bijections(self, x: Tensor) -> Iterator[tuple[Bijection, Tensor]]:
        """Yields the map of the block in the middle, given the blocks before it. Masks keep all others out of it."""
        y = _blocks_of(x)
        row, column = y.shape[2] // 2, y.shape[3] // 2
        at = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
        from_past = self.prediction.from_past(y)
        h = self._features(y, self.prediction.errors(y, from_past))[at].detach()
        from_past = from_past[at].detach()

        def block(own: Tensor) -> tuple[Tensor, Tensor]:
            errors = self.prediction.errors(own, from_past)
            e = self._by_pixel(errors)
            z, log_slopes = self.head(h, own, errors).given(e).logits(e)
            return z.flatten(1, 2), log_slopes.flatten(1).sum(1) - self.prediction.log_scale.sum()

        yield block, y[at]

    def _by_pixel(self, e: Tensor) -> Tensor:
        by_pixel: Tensor = e.unflatten(1, (PIXELS, self.shape[0]))
        return by_pixel

    def _conditionals(self, y: Tensor) -> tuple[Tensor, Mixtures]:
        """Returns the errors (N, 4, C, h, w) of blocks y (N, D, h, w), and the density of each."""
        with torch.autocast(y.device.type, enabled=False):
            e = self.prediction.errors(y, self.prediction.from_past(y))
        mixtures: Mixtures = self.head(self._features(y, e), y, e)
        return self._by_pixel(e), mixtures

    def _features(self, y: Tensor, e: Tensor) -> Tensor:
        """Returns what the blocks before say of each block, (N, hidden, h, w)."""
        h: Tensor = self.first(seen_by_network(y, e))
        for block in self.blocks:
            h = block(h)
        return activate(normalise(h))

    def _in_order(self, count: int, fill: Callable[[Tensor, Tensor, int, int], Tensor]) -> Tensor:
        """x (count, C, H, W) of blocks that `fill` gives, (count, D, 1, 1), one after another.

        Args:
            fill: of a block's features (count, hidden, 1, 1), what the blocks before predict (count, D, 1, 1), row and
                column.
        """
        side, like = self.description.image_size // 2, self.prediction.bias
        y = like.new_zeros(count, len(like), side, side)
        before = with_ones(y)
        seen = self.first.pad(seen_by_network(y, y))
        kept = [block.causal.pad(like.new_zeros(count, self.description.hidden, side, side)) for block in self.blocks]
        for row in range(side):
            for column in range(side):
                window = slice(row, row + 3), slice(column, column + 7)
                from_past = self.prediction.from_window(before[:, :, *window])
                h = self.first.valid(seen[:, :, *window])
                for block, past in zip(self.blocks, kept, strict=True):
                    past[:, :, row + 1, column + 1] = activate(normalise(h))[:, :, 0, 0]
                    h = h + block.mix(activate(block.causal.valid(past[:, :, row : row + 2, column : column + 3])))
                own = fill(activate(normalise(h)), from_past, row, column)
                e = self.prediction.errors(own, from_past)
                y[:, :, row, column] = before[:, :-1, row + 2, column + 3] = own[:, :, 0, 0]
                seen[:, :, row + 2, column + 3] = seen_by_network(own, e)[:, :, 0, 0]
        return unsqueeze(y)


def _blocks_of(x: Tensor) -> Tensor:
    return squeeze(x).contiguous(memory_format=torch.channels_last)
