"""The networks that are trained on a set, built by name and initialised from a generator.

They have only layers that treat each image by itself (no batch statistics). So the gradient of one class does not
depend on which other classes share the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import skip_init

from condense.errors import ConfigError
from condense.kernels import autograd
from condense.kernels.compiled import available
from condense.kernels.convolution import FEW, can_convolve
from condense.settings import Settings

Given = TypeVar("Given", bound=nn.Module | Tensor)
Network = TypeVar("Network", bound=nn.Module)


class NetworkConfig(Settings):
    """Which learner, and how large."""

    name: str = "convnet"
    """convnet, the field's ConvNet, or mlp."""
    width: int = Field(128, ge=1)
    """Channels of each block, or units of each layer."""
    depth: int = Field(3, ge=1)
    """Blocks, or hidden layers."""

    @field_validator("name")
    @classmethod
    def _name_known(cls, value: str) -> str:
        if value not in NETWORKS:
            raise ValueError(f"unknown network {value!r}; one of: {', '.join(NETWORKS)}")
        return value


class Learner(nn.Module):
    """A network whose logits are linear in an embedding of each image."""

    classifier: nn.Linear

    def embed(self, images: Tensor) -> Tensor:
        """Embeds normalised images (N, C, H, W) as (N, features), what the last layer sees."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (N, classes) of normalised images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits

    def first_order(self, images: Tensor) -> Tensor:
        """Does `forward` where gradients are taken once, and in the parameters alone: in training and in testing."""
        return self.forward(images)


class Convolution(nn.Conv2d):
    """3x3, padded by one; on a CPU compiled, where `can_convolve`."""

    def __init__(self, inputs: int, outputs: int, *, device: torch.device | None = None) -> None:
        super().__init__(inputs, outputs, 3, padding=1, device=device)

    def forward(self, input: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        if can_convolve(input, self.weight):
            return autograd.convolution(input, self.weight[None], self.bias)
        return super().forward(input)


class ConvNet(Learner):
    """The field's ConvNet: `depth` blocks of 3x3 convolution, instance norm, ReLU, 2x2 average pool; then linear.

    320,010 parameters at 3x32x32, width 128, depth 3, 10 classes (Gidaris, Komodakis 2018; Zhao et al. 2021).
    Instance norm is written as group norm with one group per channel, which is the same function. On a CPU norm, ReLU
    and pool are one compiled pass; where the network itself is not trained, their second derivative is in closed form.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int, depth: int) -> None:
        super().__init__()
        channels, height, side = shape
        if height != side or side < 2**depth:
            raise ConfigError(
                f"a ConvNet of depth {depth} halves its {height}x{side} images {depth} times",
                "set data.image_size to a larger size or network.depth to fewer blocks",
            )
        self.convolutions = nn.ModuleList(
            skip_init(Convolution, channels if level == 0 else width, width) for level in range(depth)
        )
        self.norms = nn.ModuleList(skip_init(nn.GroupNorm, width, width) for _ in range(depth))
        self.classifier = skip_init(nn.Linear, width * (side >> depth) ** 2, classes)

    @property
    def blocks(self) -> list[tuple[nn.Conv2d, nn.GroupNorm]]:
        """Convolution and norm of each block."""
        pairs = zip(self.convolutions, self.norms, strict=True)
        return [(convolution, norm) for convolution, norm in pairs]  # type: ignore[misc]

    def embed(self, images: Tensor) -> Tensor:
        """(N, C, H, W) normalised images to (N, width * (side / 2^depth)^2)."""
        return self._embed(images, self.blocks, frozen=not self.norms[0].weight.requires_grad)

    def first_order(self, images: Tensor) -> Tensor:
        """On a CPU, does the first block of grey images in one call; elsewhere all is layers that `vmap` takes."""
        (convolution, norm), *deeper = self.blocks
        if self._compiled(images) and images.shape[1] <= FEW:
            weight, bias = convolution.weight, cast(Tensor, convolution.bias)
            pooled = autograd.first_block(images, weight, bias, norm.weight, norm.bias, norm.eps)
            embedded = self._embed(pooled, deeper)
        else:
            embedded = self._embed(images, self.blocks)
        logits: Tensor = self.classifier(embedded)
        return logits

    def _embed(self, images: Tensor, blocks: list[tuple[nn.Conv2d, nn.GroupNorm]], *, frozen: bool = False) -> Tensor:
        compiled = self._compiled(images)
        if compiled:
            images = images.contiguous(memory_format=torch.channels_last)
        for convolution, norm in blocks:
            if compiled or frozen:
                images = autograd.norm_relu_pool(convolution(images), norm.weight, norm.bias, norm.eps)
            else:
                images = F.avg_pool2d(F.relu(norm(convolution(images))), 2)
        return images.flatten(1)

    def _compiled(self, images: Tensor) -> bool:
        return available(images, images.dtype, self.blocks[0][0].out_channels)


class MLP(Learner):
    """`depth` hidden layers of `width` units with ReLU; then linear."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int, depth: int) -> None:
        super().__init__()
        sizes = [math.prod(shape), *[width] * depth]
        self.layers = nn.ModuleList(skip_init(nn.Linear, a, b) for a, b in pairwise(sizes))
        self.classifier = skip_init(nn.Linear, width, classes)

    def embed(self, images: Tensor) -> Tensor:
        """(N, C, H, W) normalised images to (N, width)."""
        hidden = images.flatten(1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return hidden


NETWORKS: dict[str, Callable[..., Learner]] = {"convnet": ConvNet, "mlp": MLP}


def build_network(config: NetworkConfig, shape: tuple[int, int, int], classes: int) -> Learner:
    """Builds a network for images of `shape` (C, H, W), not initialised; `initialise_` draws its parameters."""
    return NETWORKS[config.name](shape, classes, width=config.width, depth=config.depth)


def in_precision(given: Given, precision: torch.dtype) -> Given:
    """Returns a network or images as they are, or a copy in bfloat16; differentiable in the images."""
    if precision != torch.bfloat16:
        return given
    return cast(Given, (given if isinstance(given, Tensor) else copy.deepcopy(given)).to(precision))


@torch.no_grad()
def initialise_(network: Network, generator: torch.Generator) -> Network:
    """Draws all parameters anew: uniform in +-1/sqrt(fan_in) (torch's default), norms at identity.

    The draw is made on the generator's device and copied, so a CPU generator gives the same network on any device.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    drawn = torch.rand(parameter.shape, generator=generator, device=generator.device)
                    parameter.copy_(drawn.mul_(2 * bound).sub_(bound), non_blocking=True)
        elif isinstance(module, nn.GroupNorm):
            module.weight.fill_(1)
            module.bias.zero_()
    return network
