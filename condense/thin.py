"""3x3 convolutions on a CPU of images with few channels, or to few, and their weight gradients: thin.c.

A library's are made for many channels: at one channel the weight gradient alone was 40 % of a step.

kernels.py builds it, convolutions.py says where it is used.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense.kernels import call, channels_last, on_threads, sum_of, weights_by_tap

FEW = 4  # channels, at most
LANES = 16  # as in thin.c: floats of a vector


def convolution(images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution, padded by one, with weights of its own for each group of images; few channels in or out.

    Args:
        images: (G * n, I, H, W) float32 or bfloat16.
        weights: (G, O, I, 3, 3), where I or O is at most FEW. bias: (O,), the same for all groups.

    Returns:
        (G * n, O, H, W) of the images' type, channels last.
    """
    count, inputs, height, width = images.shape
    groups, outputs = weights.shape[:2]
    found = torch.empty((count, outputs, height, width), dtype=images.dtype, memory_format=torch.channels_last)
    shift = torch.zeros(outputs) if bias is None else bias.float().contiguous()
    images, each = channels_last(images), count // groups
    name, prepared = ("thin_convolution", weights_by_tap(weights)) if inputs <= FEW else _narrow(weights)

    def some(part: slice) -> None:
        call(name, images, prepared, shift, part.start, part.stop, each, height, width, inputs, outputs, found)

    on_threads(some, count, max(inputs, outputs) * height * width)
    return found


def _narrow(weights: Tensor) -> tuple[str, Tensor]:
    """Of few outputs: what each input pixel gives to its nine neighbours, side by side up to whole vectors."""
    flipped = weights.float().flip(3, 4).permute(0, 2, 3, 4, 1).flatten(2)
    return "narrow_convolution", F.pad(flipped, (0, -flipped.shape[2] % LANES)).contiguous()


def weight_gradients(images: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """Float32 gradients (G, O, I, 3, 3) at the weights of `convolution`, given those at its result (G * n, O, H, W)."""
    if images.shape[1] > FEW:  # the sum over pixels is the same with the two in each other's place
        return weight_gradients(gradients, images, groups).transpose(1, 2).flip(3, 4)
    count, inputs, height, width = images.shape
    outputs = gradients.shape[1]
    images, gradients, each = channels_last(images), channels_last(gradients), count // groups

    def some(part: slice) -> Tensor:
        """Of these groups, or of these images of the one group."""
        own = groups if groups == 1 else part.stop - part.start
        rows = part if groups == 1 else slice(part.start * each, part.stop * each)
        found = torch.zeros((own, 3, 3, inputs, outputs))
        sizes = own, (rows.stop - rows.start) // own, height, width, inputs, outputs
        call("thin_weight_gradient", images[rows], gradients[rows], *sizes, found)
        return found

    shares = on_threads(some, count if groups == 1 else groups, outputs * height * width)
    found = sum_of(shares) if groups == 1 else torch.cat(shares)
    return found.permute(0, 4, 3, 1, 2)


def first_block(
    images: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_relu_pool` of a 3x3 convolution, padded by one, of images with few channels.

    Args:
        images: (N, I, H, W), channels last, float32 or bfloat16.
        weight: (O, I, 3, 3). bias, gamma, beta: (O,).

    Returns:
        As `norm_relu_pool`.
    """
    count, inputs, height, width = images.shape
    outputs = len(weight)
    bias, gamma, beta = bias.float(), gamma.float(), beta.float()
    pooled = torch.empty(
        (count, outputs, height // 2, width // 2), dtype=images.dtype, memory_format=torch.channels_last
    )
    mean, rstd = torch.empty((2, count, outputs)).unbind()
    images, by_tap = channels_last(images), weights_by_tap(weight)

    def some(part: slice) -> None:
        sizes = part.stop - part.start, height, width, inputs, outputs
        found = pooled[part], mean[part], rstd[part]
        call("thin_forward", images[part], by_tap, bias, gamma, beta, ctypes.c_float(eps), *sizes, *found)

    on_threads(some, count, outputs * height * width)
    return pooled, mean, rstd


def first_block_gradient(
    images: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at weight, gamma and beta of `first_block`, float32, given that at its result; no graph.

    That at the bias is zero, since the norm takes the mean away.
    """
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    count, inputs, height, width = images.shape
    images, by_tap = channels_last(images), weights_by_tap(weight)
    bias, gamma, beta = bias.float(), gamma.float(), beta.float()

    def some(part: slice) -> tuple[Tensor, ...]:
        found = torch.zeros_like(by_tap), torch.zeros_like(gamma), torch.zeros_like(beta)
        sizes = part.stop - part.start, height, width, inputs, len(weight)
        kept = gradient[part], by_tap, bias, gamma, beta, mean[part], rstd[part]
        call("thin_backward", images[part], *kept, *sizes, *found)
        return found

    shares = on_threads(some, count, len(weight) * height * width)
    to_weight, to_gamma, to_beta = map(sum_of, zip(*shares, strict=True))
    return to_weight.permute(3, 2, 0, 1), to_gamma, to_beta
