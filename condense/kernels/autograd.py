"""A ConvNet's blocks for automatic differentiation, compiled on a CPU.

They equal PyTorch's layers within rounding. `convolution` and `weight_gradients` are each other's derivatives, any
number of times. `norm_relu_pool` can be differentiated twice, as matching does. `first_block` can be differentiated
once, where networks are trained or tested.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from condense.kernels import convolution as convolutions
from condense.kernels import first_block as blocks
from condense.kernels import norm_relu_pool as compiled
from condense.kernels import pytorch
from condense.kernels.compiled import available


def convolution(images: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3, padded by one, of images (G * n, I, H, W) with weights (G, O, I, 3, 3), where `can_convolve`."""
    found: Tensor = _Convolution.apply(images.contiguous(memory_format=torch.channels_last), weights, bias)
    return found


def weight_gradients(images: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """Returns the gradients at `convolution`'s weights, (G, O, I, 3, 3), given those at its result (G * n, O, H, W)."""
    images, gradients = (whole.contiguous(memory_format=torch.channels_last) for whole in (images, gradients))
    found: Tensor = _WeightGradients.apply(images, gradients, groups)
    return found


def norm_relu_pool(activation: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """avg_pool2d(relu(instance_norm(z) * gamma + beta), 2) of z (N, C, H, W).

    Gradients of its gradients are those in z and in what comes from above; in gamma and beta there are none.
    """
    # Before `apply`: what is made inside has no history, and the second derivative would end there.
    in_place = _implementation(activation) is compiled
    activation = activation.contiguous(memory_format=torch.channels_last if in_place else torch.contiguous_format)
    pooled: Tensor = _NormReluPool.apply(activation, gamma, beta, eps)
    return pooled


def first_block(images: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """`norm_relu_pool` of a 3x3 convolution, padded by one, of images (N, I, H, W) with few channels.

    Differentiable once, in the parameters.
    """
    pooled: Tensor = _FirstBlock.apply(images, weight, bias, gamma, beta, eps)
    return pooled


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weights)
        return convolutions.convolution(images, weights, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        images, weights = ctx.saved_tensors
        gradients = outputs[0]
        to_images, to_weights, to_bias = ctx.needs_input_grad
        return (
            convolution(gradients, convolutions.transposed(weights)) if to_images else None,
            weight_gradients(images, gradients, len(weights)).to(weights.dtype) if to_weights else None,
            gradients.sum((0, 2, 3)) if to_bias else None,
        )


class _WeightGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, gradients: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(images, gradients)
        return convolutions.weight_gradients(images, gradients, groups)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, gradients = ctx.saved_tensors
        to_images, to_gradients, _ = ctx.needs_input_grad
        return (
            convolution(gradients, convolutions.transposed(outputs[0])) if to_images else None,
            convolution(images, outputs[0]) if to_gradients else None,
            None,
        )


def _implementation(activation: Tensor) -> ModuleType:
    """Where norm, ReLU and pool of these activations are computed."""
    return compiled if available(activation, activation.dtype, activation.shape[1]) else pytorch


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        pooled, *kept = _implementation(activation).norm_relu_pool(activation, gamma, beta, eps)
        ctx.save_for_backward(activation, gamma, beta, *kept)
        found: Tensor = pooled
        return found

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        to_activation, to_gamma, to_beta = _NormReluPoolGradient.apply(outputs[0], *ctx.saved_tensors)
        return to_activation, to_gamma, to_beta, None


class _NormReluPoolGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, activation: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(gradient, activation, *rest)
        found: tuple[Tensor, Tensor, Tensor] = _implementation(activation).norm_relu_pool_gradient(
            activation, gradient, *rest
        )
        ctx.mark_non_differentiable(*found[1:])
        ctx.set_materialize_grads(False)  # no zeros for those
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient, activation, *rest = ctx.saved_tensors
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            raise NotImplementedError("gradients of gradients in a norm's own parameters")
        found = _implementation(activation).norm_relu_pool_twice(activation, gradient, outputs[0], *rest)
        return (*found, *(None for _ in rest))


class _FirstBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> Tensor:
        pooled, mean, rstd = blocks.first_block(images, weight, bias, gamma, beta, eps)
        ctx.save_for_backward(images, weight, bias, gamma, beta, mean, rstd)
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor, None]:
        images, weight, bias, *rest = ctx.saved_tensors
        to_weight, to_gamma, to_beta = blocks.first_block_gradient(images, outputs[0], weight, bias, *rest)
        return None, to_weight, torch.zeros_like(bias), to_gamma, to_beta, None
