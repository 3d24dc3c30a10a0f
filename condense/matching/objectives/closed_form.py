"""Computes a ConvNet's weight gradients on real images on a CPU, without a graph, by the layers' own formulas.

Nearly all of a matching step's cost is the real batch. Four things make this faster than automatic differentiation of
the same network. Activations stay channels last. Norm, ReLU and pool are one pass. A class's images are taken in
pieces, so that memory does not grow with them. Each weight gradient is formed from one class's images alone.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from condense.kernels.convolution import FEW, can_convolve, convolution, transposed, weight_gradients
from condense.kernels.first_block import first_block, first_block_gradient
from condense.kernels.norm_relu_pool import norm_relu_pool, norm_relu_pool_gradient
from condense.learners.networks import ConvNet

PIECE = 64  # images of one class at a time: at width 128 and 32x32 the largest activation is 32 MiB


class Product(NamedTuple):
    """Weight gradients of a linear layer as what they are products of, where these are smaller: of B images of each of
    C classes the gradients at their outputs (C, B, rows), divided by B, and their inputs (C, B, columns).

    With many classes, a row each, it keeps a target's memory from growing with their square.
    """

    slopes: Tensor
    inputs: Tensor

    def whole(self) -> Tensor:
        """(C, rows, columns)."""
        return torch.bmm(self.slopes.transpose(1, 2), self.inputs)


def smaller_as_product(images: int, rows: int, columns: int) -> bool:
    """Returns whether so many images' factors are less than half of a gradient (rows, columns)."""
    return 2 * images * (rows + columns) < rows * columns


@torch.no_grad()
def convnet_gradients(network: ConvNet, images: Tensor, classes: Tensor) -> tuple[Tensor | Product, ...]:
    """Returns gradients of each class's mean cross-entropy in the weights: (C, rows, columns) float32 each, in network
    order.

    Args:
        images: (C, n, channels, H, W), normalised, of the network's dtype, where `kernels.available`.
        classes: (C,) int64, the labels of the rows.
    """
    count, per_class = images.shape[:2]
    weights = [conv.weight.contiguous(memory_format=torch.channels_last) for conv, _ in network.blocks]
    sums = [torch.zeros((count, weight.shape[0], weight[0].numel())) for weight in weights]
    rows, columns = network.classifier.weight.shape
    last: Tensor | Product
    if smaller_as_product(per_class, rows, columns):
        last = Product(torch.empty((count, per_class, rows)), torch.empty((count, per_class, columns)))
    else:
        last = torch.zeros((count, rows, columns))
    for row, label in enumerate(classes.tolist()):
        for first in range(0, per_class, PIECE):
            part = slice(first, min(first + PIECE, per_class))
            found, slope, embedded = _gradients(network, weights, images[row, part], label)
            for total, gradient in zip(sums, found, strict=True):
                total[row] += gradient.flatten(1)
            if isinstance(last, Product):
                last.slopes[row, part], last.inputs[row, part] = slope, embedded
            else:
                last[row] += slope.t() @ embedded
    for total in (*sums, last.slopes if isinstance(last, Product) else last):
        total.div_(per_class)
    return *sums, last


def _gradients(
    network: ConvNet, weights: list[Tensor], images: Tensor, label: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of the sum of the images' cross-entropies, all of one label, in the convolutions' weights and at the logits
    (n, classes); and the embedding (n, features)."""
    hidden = images.contiguous(memory_format=torch.channels_last)
    norms = [(norm.weight.float(), norm.bias.float(), norm.eps) for _, norm in network.blocks]
    bias = cast(Tensor, network.blocks[0][0].bias).float()
    compiled = int(images.shape[1] <= FEW)  # leading blocks that are one call
    kept = []
    if compiled:
        hidden, *statistics = first_block(images, weights[0], bias, *norms[0])
    for (conv, _), weight, norm in list(zip(network.blocks, weights, norms, strict=True))[compiled:]:
        if can_convolve(hidden, weight):
            activation = convolution(hidden, weight[None], conv.bias)
        else:
            activation = F.conv2d(hidden, weight, conv.bias, padding=1).contiguous(memory_format=torch.channels_last)
        pooled, mean, rstd = norm_relu_pool(activation, *norm)
        kept.append((hidden, activation, mean, rstd))
        hidden = pooled
    embedded = hidden.flatten(1)
    slope = network.classifier(embedded).float().softmax(1)
    slope[:, label] -= 1
    slope, found = slope.to(images.dtype), []
    gradient = (slope @ network.classifier.weight).view(hidden.shape)
    for level in reversed(range(compiled, len(weights))):
        inputs, activation, mean, rstd = kept[level - compiled]
        gamma, beta, _ = norms[level]
        to_activation, _, _ = norm_relu_pool_gradient(activation, gradient, gamma, beta, mean, rstd)
        if can_convolve(inputs, weights[level]):
            found.append(weight_gradients(inputs, to_activation, 1)[0])
            if level > 0:
                gradient = convolution(to_activation, transposed(weights[level][None]), None)
            continue
        wanted = [level > 0, True, False]
        gradient, to_weight, _ = torch.ops.aten.convolution_backward(
            to_activation, inputs, weights[level], None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        found.append(to_weight)
    if compiled:
        gamma, beta, _ = norms[0]
        to_weight, _, _ = first_block_gradient(images, gradient, weights[0], bias, gamma, beta, *statistics)
        found.append(to_weight)
    return found[::-1], slope, embedded
