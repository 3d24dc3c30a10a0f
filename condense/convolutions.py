"""3x3 convolutions on a CPU, padded by one, by the compiled kernels that suit their channels: winograd.py where these
are many, thin.py where those on one side are few. fused.py differentiates them.
"""

from __future__ import annotations

from torch import Tensor

from condense import thin, winograd
from condense.kernels import available


def convolves(images: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` takes these images (N, I, H, W) and weights (..., O, I, k, k)."""
    outputs, inputs, *size = weight.shape[-4:]
    if size != [3, 3] or images.dtype != weight.dtype or not available(images, images.dtype, max(inputs, outputs)):
        return False
    return _few(inputs, outputs) or winograd.convolves(images.dtype, inputs, outputs)


def _few(inputs: int, outputs: int) -> bool:
    return min(inputs, outputs) <= thin.FEW


def convolution(images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """(G * n, O, H, W), channels last, of images (G * n, I, H, W) and weights of each group (G, O, I, 3, 3)."""
    outputs, inputs = weights.shape[1:3]
    convolved = thin.convolution if _few(inputs, outputs) else winograd.convolution
    return convolved(images, weights, bias)


def weight_gradients(images: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """Float32 gradients (G, O, I, 3, 3) at the weights of `convolution`, given those at its result (G * n, O, H, W)."""
    few = _few(images.shape[1], gradients.shape[1])
    return (thin.weight_gradients if few else winograd.weight_gradients)(images, gradients, groups)


def turned(weights: Tensor) -> Tensor:
    """(G, O, I, 3, 3) to (G, I, O, 3, 3), of the convolution that takes gradients back to the images."""
    return weights.transpose(1, 2).flip(3, 4)
