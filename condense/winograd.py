"""3x3 convolutions on a CPU with a quarter of the products, and their weight gradients: winograd.c.

kernels.py builds it, convolutions.py says where it is used.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from condense.kernels import built, call, channels_last, on_threads, sum_of, weights_by_tap

CHANNELS_AT_ONCE = 16  # of a convolution, in and out: multiples of this


def convolves(precision: torch.dtype, inputs: int, outputs: int) -> bool:
    """Whether `convolution` has so many channels of activations of `precision`, where `kernels.available`."""
    fits = inputs % CHANNELS_AT_ONCE == 0 == outputs % CHANNELS_AT_ONCE
    return fits and (precision == torch.float32 or _multiplies_bfloat16())


@functools.cache
def _multiplies_bfloat16() -> bool:
    library = built()
    return library is not None and bool(library.multiplies_bfloat16())


def convolution(images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution, padded by one, with weights of its own for each group of images.

    In bfloat16 it is off by 1 %: what is summed is rounded, not only what is summed over.

    Args:
        images: (G * n, I, H, W) float32 or bfloat16, where `convolves`.
        weights: (G, O, I, 3, 3). bias: (O,), the same for all groups.

    Returns:
        (G * n, O, H, W) of the images' type, channels last.
    """
    count, inputs, height, width = images.shape
    groups, outputs = weights.shape[:2]
    found = torch.empty((count, outputs, height, width), dtype=images.dtype, memory_format=torch.channels_last)
    shift = torch.zeros(outputs) if bias is None else bias.float().contiguous()
    images, by_tap, each = channels_last(images), weights_by_tap(weights), count // groups

    def some(part: slice) -> None:
        sizes = part.start, part.stop, each, height, width, inputs, outputs
        call("convolution", images, by_tap, shift, *sizes, found)

    on_threads(some, count, found.numel() // count)
    return found


def weight_gradients(images: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """Float32 gradients (G, O, I, 3, 3) at the weights of `convolution`, given those at its result (G * n, O, H, W)."""
    count, inputs, height, width = images.shape
    outputs = gradients.shape[1]
    images, gradients, each = channels_last(images), channels_last(gradients), count // groups

    def some(part: slice) -> Tensor:
        """Of these images alone: of one group, or of whole groups."""
        own = max(1, (part.stop - part.start) // each)
        found = torch.empty((own, 3, 3, inputs, outputs))
        sizes = own, (part.stop - part.start) // own, height, width, inputs, outputs
        call("weight_gradient", images[part], gradients[part], *sizes, found)
        return found

    if groups == 1:
        found = sum_of(on_threads(some, count, images[0].numel()))
    else:
        shares = on_threads(
            lambda part: some(slice(part.start * each, part.stop * each)), groups, each * images[0].numel()
        )
        found = torch.cat(shares)
    return found.permute(0, 4, 3, 1, 2)
