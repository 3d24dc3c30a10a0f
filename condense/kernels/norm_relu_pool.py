"""Instance norm, ReLU and average pool of a ConvNet on a CPU in one pass (norm_relu_pool.c)."""

from __future__ import annotations

import ctypes
import logging
from typing import TypeVar

import torch
from torch import Tensor

from condense.kernels.compiled import call, on_threads, sum_shares

T = TypeVar("T")
log = logging.getLogger(__name__)


def norm_relu_pool(activation: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """avg_pool2d(relu(instance_norm(z) * gamma + beta), 2), and what its gradient needs.

    Args:
        activation: z (N, C, H, W), channels last, float32 or bfloat16.
        gamma: (C,).
        beta: (C,).

    Returns:
        (N, C, H // 2, W // 2), channels last; mean and 1 / deviation (N, C) of each image's channels, float32.
    """
    assert activation.is_contiguous(memory_format=torch.channels_last)
    count, channels, height, width = activation.shape
    gamma, beta = gamma.float(), beta.float()
    pooled = torch.empty(
        (count, channels, height // 2, width // 2), dtype=activation.dtype, memory_format=torch.channels_last
    )
    mean, rstd = torch.empty((2, count, channels)).unbind()

    def some(part: slice) -> None:
        sizes = part.stop - part.start, height, width, channels
        found = pooled[part], mean[part], rstd[part]
        call("forward", activation[part], gamma, beta, ctypes.c_float(eps), *sizes, *found)

    on_threads(some, count, activation[0].numel())
    return pooled, mean, rstd


def norm_relu_pool_gradient(
    activation: Tensor, gradient: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns gradients at z, gamma and beta of `norm_relu_pool`, given that at its result; no graph."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    gamma, beta = gamma.float(), beta.float()
    to_activation = torch.empty_like(activation)
    count, channels, height, width = activation.shape

    def some(part: slice) -> tuple[Tensor, Tensor]:
        to_norm = torch.zeros_like(gamma), torch.zeros_like(beta)
        sizes = part.stop - part.start, height, width, channels
        kept = gradient[part], gamma, beta, mean[part], rstd[part]
        call("backward", activation[part], *kept, *sizes, to_activation[part], *to_norm)
        return to_norm

    to_gamma, to_beta = map(sum_shares, zip(*on_threads(some, count, activation[0].numel()), strict=True))
    return to_activation, to_gamma, to_beta


def norm_relu_pool_twice(
    activation: Tensor, gradient: Tensor, v: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns gradients at `gradient` and at z of sum(v * to_z), to_z as of `norm_relu_pool_gradient`."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    v = v.contiguous(memory_format=torch.channels_last)
    gamma, beta = gamma.float(), beta.float()
    found = torch.empty_like(gradient), torch.empty_like(activation)
    count, channels, height, width = activation.shape

    def some(part: slice) -> None:
        sizes = part.stop - part.start, height, width, channels
        kept = gradient[part], v[part], gamma, beta, mean[part], rstd[part]
        call("twice", activation[part], *kept, *sizes, *(whole[part] for whole in found))

    on_threads(some, count, activation[0].numel())
    return found
