"""Gradient matching (DC): the synthetic images of a class should move a network as its real images do.

Zhao, Mopuri, Bilen 2021, eq. 9 and 10, with G the gradient of a weight W on one class, r its output rows:

    D_c = sum over W, r of  1 - cos(G_r(real), G_r(synthetic))

The gradients of all classes need no copy of the network for each class. With the input a and the output gradient g of a
layer, the weight gradient of class c needs only the images of class c. So one pass through the network gives a and g
for all classes, and one grouped convolution for each layer gives all their weight gradients. One-dimensional parameters
(biases, norms) are left out, as in the published code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv2d_weight

from condense.errors import ConfigError
from condense.kernels import autograd
from condense.kernels.compiled import available
from condense.kernels.convolution import can_convolve
from condense.learners.networks import ConvNet, in_precision
from condense.matching.objectives.closed_form import Product, convnet_gradients
from condense.workers.devices import network_batch


class ClassGradients(NamedTuple):
    """Weight gradients per class, of each weight in network order."""

    kept: tuple[Tensor | Product, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """One (C, rows, columns) for each weight."""
        return tuple(part.whole() if isinstance(part, Product) else part for part in self.kept)


class _ConvolutionGradient(torch.autograd.Function):
    """Weight gradients of a convolution, one per class, differentiable in both arguments.

    inputs (C*n, I, H, W), output gradients (C*n, O, H', W') -> (C, O, I, k, k). Classes become groups.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, gradients: Tensor, classes: int, kernel: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(inputs, gradients)
        ctx.classes, ctx.padding = classes, padding
        grouped_in, grouped_out = _classes_as_groups(inputs, classes), _classes_as_groups(gradients, classes)
        shape = (grouped_out.shape[1], inputs.shape[1], *kernel)
        weight: Tensor = conv2d_weight(grouped_in, shape, grouped_out, padding=padding, groups=classes)
        return weight.view(classes, gradients.shape[1], *shape[1:])

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        inputs, gradients = ctx.saved_tensors
        kernels = outputs[0].flatten(0, 1).contiguous()
        options = {"padding": ctx.padding, "groups": ctx.classes}
        to_inputs = to_gradients = None
        if ctx.needs_input_grad[0]:
            grouped = F.conv_transpose2d(_classes_as_groups(gradients, ctx.classes), kernels, **options)
            to_inputs = _groups_as_classes(grouped, ctx.classes)
        if ctx.needs_input_grad[1]:
            grouped = F.conv2d(_classes_as_groups(inputs, ctx.classes), kernels, **options)
            to_gradients = _groups_as_classes(grouped, ctx.classes)
        return to_inputs, to_gradients, None, None, None


def _classes_as_groups(images: Tensor, classes: int) -> Tensor:
    """(C*n, K, H, W) -> (n, C*K, H, W)."""
    split = images.view(classes, -1, *images.shape[1:])
    return split.transpose(0, 1).reshape(split.shape[1], -1, *images.shape[2:])


def _groups_as_classes(images: Tensor, classes: int) -> Tensor:
    """(n, C*K, H, W) -> (C*n, K, H, W)."""
    split = images.view(images.shape[0], classes, -1, *images.shape[2:])
    return split.transpose(0, 1).reshape(-1, *split.shape[2:])


def class_gradients(network: nn.Module, images: Tensor, classes: Tensor, *, create_graph: bool) -> ClassGradients:
    """Gradient of the mean cross-entropy of each class's own images in every weight of the network.

    Args:
        network: made of Conv2d (stride 1) and Linear layers and of layers that treat images singly.
        images: (C, n, channels, H, W), normalised; n images for each of C classes.
        classes: (C,) int64, the label that the images of each row have; or soft ones of each image, (C, n, classes).
        create_graph: whether the result is differentiated in the images, and in soft labels.

    Returns:
        One tensor (C, rows, columns) per weight; a convolution's columns are its in-channels times kernel.
    """
    count, per_class = images.shape[:2]
    captured: list[tuple[nn.Module, Tensor, Tensor]] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured.append((module, inputs[0], output if output.requires_grad else output.requires_grad_()))

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(capture) for layer in layers]
    try:
        with torch.enable_grad():
            logits = network(images.flatten(0, 1))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            soft = classes.is_floating_point()
            labels = classes.flatten(0, 1).to(logits.dtype) if soft else classes.repeat_interleave(per_class)
            # The sum over classes of each class's mean: its gradient at an image is that of its own class's loss.
            loss = F.cross_entropy(logits, labels, reduction="sum") / per_class
            outputs = [output for _, _, output in captured]
            gradients = torch.autograd.grad(loss, outputs, create_graph=create_graph)
    finally:
        for hook in hooks:
            hook.remove()
    weights = []
    for (layer, inputs, _), gradient in zip(captured, gradients, strict=True):
        if not create_graph:
            inputs = inputs.detach()
        if isinstance(layer, nn.Conv2d):
            if can_convolve(inputs, layer.weight):
                weight = autograd.weight_gradients(inputs, gradient, count)
            else:
                weight = _ConvolutionGradient.apply(inputs, gradient, count, layer.kernel_size, layer.padding)
            weights.append(weight.flatten(2))
        else:
            slopes, embedded = (whole.to(logits.dtype).view(count, per_class, -1) for whole in (gradient, inputs))
            weights.append(torch.bmm(slopes.transpose(1, 2), embedded))
    return ClassGradients(tuple(weights))


def real_gradients(network: nn.Module, images: Tensor, classes: Tensor, precision: torch.dtype) -> ClassGradients:
    """`class_gradients` of real images (C, n, channels, H, W): no graph, in `precision`, in pieces."""
    count, per_class = images.shape[:2]
    if isinstance(network, ConvNet) and available(images, precision, network.blocks[0][0].out_channels):
        return ClassGradients(convnet_gradients(network, images.to(precision), classes))
    piece = max(1, network_batch(images.device) // count)
    total: list[Tensor] = []
    for part in images.split(piece, dim=1):
        share = part.shape[1] / per_class
        gradients = class_gradients(network, part.to(precision), classes, create_graph=False).tensors
        if not total:
            total = [gradient.float() * share for gradient in gradients]
        else:
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.add_(gradient.float(), alpha=share)
    return ClassGradients(tuple(total))


def row_cosine(real: ClassGradients, synthetic: ClassGradients) -> Tensor:
    """Sum over weights and output rows of 1 - cosine, (C,). A row without gradient counts as distance 1."""
    pairs = zip(real.tensors, synthetic.tensors, strict=True)
    rows = [((a * b).sum(2), a.norm(dim=2), b.square().sum(2)) for a, b in pairs]
    products, norms, squares = (torch.cat(of_rows, 1) for of_rows in zip(*rows, strict=True))
    # The published code's 1e-6 beside the product of norms: the cosine of a zero row is 0, not nan.
    return (1 - products / (norms * _norm(squares) + 1e-6)).sum(1)


def squared_error(real: ClassGradients, synthetic: ClassGradients) -> Tensor:
    """Sum over weights of the squared difference, (C,) (Kim et al. 2022)."""
    pairs = zip(real.tensors, synthetic.tensors, strict=True)
    return torch.stack([(a - b).square().sum((1, 2)) for a, b in pairs]).sum(0)


def absolute_error(real: ClassGradients, synthetic: ClassGradients) -> Tensor:
    """Sum over weights of the absolute difference, (C,) (Kim et al. 2022)."""
    pairs = zip(real.tensors, synthetic.tensors, strict=True)
    return torch.stack([(a - b).abs().sum((1, 2)) for a, b in pairs]).sum(0)


def _norm(squares: Tensor) -> Tensor:
    """Euclidean norms of rows of which these are the sums of squares; the gradient at a zero row is zero, not nan."""
    safe = torch.where(squares > 0, squares, torch.ones_like(squares))
    return torch.where(squares > 0, safe.sqrt(), torch.zeros_like(squares))


DISTANCES = {"cosine": row_cosine, "mse": squared_error, "l1": absolute_error}


class GradientMatching:
    """The objective `gradient`: per-class distances (C,) between real and synthetic weight gradients."""

    fresh_network = False

    def __init__(self, *, distance: str | None = None, precision: torch.dtype = torch.float32) -> None:
        distance = distance or "cosine"
        if distance not in DISTANCES:
            raise ConfigError(f"unknown gradient distance {distance!r}", "one of: " + ", ".join(DISTANCES))
        self.distance = DISTANCES[distance]
        self.precision = precision

    def target(self, network: nn.Module, real: Tensor, classes: Tensor) -> ClassGradients:
        """Returns what the synthetic images are to match; nothing in it depends on them, and no graph is kept."""
        return real_gradients(in_precision(network, self.precision), real, classes, self.precision)

    def __call__(self, network: nn.Module, real: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Distances (C,) between real (C, B, ...) and synthetic (C, ipc, ...) images of the same classes."""
        return self.distances(network, self.target(network, real, classes), synthetic, classes)

    def distances(self, network: nn.Module, target: ClassGradients, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Returns distances (C,) of the synthetic images (C, ipc, channels, H, W) to the target; differentiable in
        them.

        classes: (C,) int64, or soft labels (C, ipc, classes), in which the distances are differentiable too.
        """
        network, synthetic = in_precision(network, self.precision), in_precision(synthetic, self.precision)
        return self.distance(target, class_gradients(network, synthetic, classes, create_graph=True))
