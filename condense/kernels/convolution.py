"""3x3 convolutions on a CPU, padded by one, and their weight gradients, by the compiled kernels that suit them.

Where channels are many, Winograd's filtering takes a quarter of the products (winograd.c). Where those on one side are
few, the kernels are loops of their own (few_channels.c), since a library's are made for many: at one channel the weight
gradient alone was 40 % of a step.

autograd.py differentiates them. `can_convolve` says where they serve; elsewhere PyTorch's are used.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense.kernels.compiled import (
    available,
    call,
    channels_last,
    load_library,
    on_threads,
    sum_shares,
    weights_by_tap,
)

FEW = 4  # channels, at most
CHANNELS_AT_ONCE = 16  # of many, in and out: multiples of this
LANES = 16  # as in few_channels.c: floats of a vector


def can_convolve(images: Tensor, weight: Tensor) -> bool:
    """Returns whether `convolution` takes these images (N, I, H, W) and weights (..., O, I, k, k)."""
    outputs, inputs, *size = weight.shape[-4:]
    if size != [3, 3] or images.dtype != weight.dtype or not available(images, images.dtype, max(inputs, outputs)):
        return False
    if min(inputs, outputs) <= FEW:
        return True
    fits = inputs % CHANNELS_AT_ONCE == 0 == outputs % CHANNELS_AT_ONCE
    return fits and (images.dtype == torch.float32 or _multiplies_bfloat16())


@functools.cache
def _multiplies_bfloat16() -> bool:
    library = load_library()
    return library is not None and bool(library.multiplies_bfloat16())


def convolution(images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves 3x3, padded by one, with weights of its own for each group of images.

    In bfloat16, with many channels, it is off by 1 %: what is summed is rounded, not only what is summed over.

    Args:
        images: (G * n, I, H, W) float32 or bfloat16, where `can_convolve`.
        weights: (G, O, I, 3, 3). bias: (O,), the same for all groups.

    Returns:
        (G * n, O, H, W) of the images' type, channels last.
    """
    count, inputs, height, width = images.shape
    groups, outputs = weights.shape[:2]
    found = torch.empty((count, outputs, height, width), dtype=images.dtype, memory_format=torch.channels_last)
    shift = torch.zeros(outputs) if bias is None else bias.float().contiguous()
    images, each = channels_last(images), count // groups
    if inputs > FEW and outputs <= FEW:
        name, prepared = "narrow_convolution", _to_neighbours(weights)
    else:
        name, prepared = "thin_convolution" if inputs <= FEW else "convolution", weights_by_tap(weights)

    def some(part: slice) -> None:
        call(name, images, prepared, shift, part.start, part.stop, each, height, width, inputs, outputs, found)

    on_threads(some, count, max(inputs, outputs) * height * width)
    return found


def _to_neighbours(weights: Tensor) -> Tensor:
    """Of few outputs: what each input pixel gives to its nine neighbours, side by side up to whole vectors."""
    flipped = weights.float().flip(3, 4).permute(0, 2, 3, 4, 1).flatten(2)
    return F.pad(flipped, (0, -flipped.shape[2] % LANES)).contiguous()


def transposed(weights: Tensor) -> Tensor:
    """Returns the weights (G, I, O, 3, 3) of the convolution that takes gradients back to the images, of (G, O, I, 3,
    3).
    """
    return weights.transpose(1, 2).flip(3, 4)


def weight_gradients(images: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """Float32 gradients (G, O, I, 3, 3) at the weights of `convolution`, given those at its result (G * n, O, H, W)."""
    count, inputs, height, width = images.shape
    outputs = gradients.shape[1]
    if inputs > FEW and outputs <= FEW:  # the sum over pixels is the same with the two in each other's place
        return transposed(weight_gradients(gradients, images, groups))
    images, gradients, each = channels_last(images), channels_last(gradients), count // groups
    name = "thin_weight_gradient" if inputs <= FEW else "weight_gradient"

    def some(part: slice) -> Tensor:
        """Of these images alone: of one group, or of whole groups."""
        own = max(1, (part.stop - part.start) // each)
        found = torch.empty((own, 3, 3, inputs, outputs))
        sizes = own, (part.stop - part.start) // own, height, width, inputs, outputs
        call(name, images[part], gradients[part], *sizes, found)
        return found

    numbers = max(inputs, outputs) * height * width
    if groups == 1:
        found = sum_shares(on_threads(some, count, numbers))
    else:
        shares = on_threads(lambda part: some(slice(part.start * each, part.stop * each)), groups, each * numbers)
        found = torch.cat(shares)
    return found.permute(0, 4, 3, 1, 2)
