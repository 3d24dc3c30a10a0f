"""A ConvNet's whole first block on a CPU, in one pass: convolution of few channels, norm, ReLU and pool.

The kernel is in few_channels.c.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from condense.kernels.compiled import call, channels_last, on_threads, sum_shares, weights_by_tap


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
    """Returns gradients at weight, gamma and beta of `first_block`, float32, given that at its result; no graph.

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
    to_weight, to_gamma, to_beta = map(sum_shares, zip(*shares, strict=True))
    return to_weight.permute(3, 2, 0, 1), to_gamma, to_beta
