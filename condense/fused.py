"""Logits of a learner whose gradients are taken once, as where it is trained or tested: on a CPU a ConvNet's blocks run
compiled (kernels.py), in half to two thirds of the time of PyTorch's layers and in float32 alike within rounding.

Where gradients of gradients are taken, as in matching, PyTorch's own layers stay.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense import kernels
from condense.networks import ConvNet, Learner


def logits(network: Learner, images: Tensor) -> Tensor:
    """(N, C, H, W) normalised images to (N, classes); differentiable once, in the network's parameters."""
    if not isinstance(network, ConvNet) or not kernels.available(
        images, images.dtype, network.blocks[0][0].out_channels
    ):
        return network(images)  # type: ignore[no-any-return]
    hidden = images.contiguous(memory_format=torch.channels_last)
    for level, (convolution, norm) in enumerate(network.blocks):
        weight, bias = convolution.weight, cast(Tensor, convolution.bias)
        if level == 0 and images.shape[1] <= kernels.FEW_CHANNELS:
            hidden = _FirstBlock.apply(hidden, weight, bias, norm.weight, norm.bias, norm.eps)
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
            hidden = _NormReluPool.apply(F.conv2d(hidden, weight, bias, padding=1), norm.weight, norm.bias, norm.eps)
    found: Tensor = network.classifier(hidden.flatten(1))
    return found


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        activation = activation.contiguous(memory_format=torch.channels_last)
        pooled, mean, rstd = kernels.norm_relu_pool(activation, gamma, beta, eps)
        ctx.save_for_backward(activation, gamma, beta, mean, rstd)
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        activation, *rest = ctx.saved_tensors
        return *kernels.norm_relu_pool_gradient(activation, outputs[0], *rest), None


class _FirstBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> Tensor:
        pooled, mean, rstd = kernels.first_block(images, weight, bias, gamma, beta, eps)
        ctx.save_for_backward(images, weight, bias, gamma, beta, mean, rstd)
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor, None]:
        images, weight, bias, *rest = ctx.saved_tensors
        to_weight, to_gamma, to_beta = kernels.first_block_gradient(images, outputs[0], weight, bias, *rest)
        return None, to_weight, torch.zeros_like(bias), to_gamma, to_beta, None
