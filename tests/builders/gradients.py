"""Gradient matching by slow loops."""

import torch
from torch import Tensor, nn

from condense.learners.networks import NetworkConfig, build_network, initialise_

CLASSES, REAL, IPC, SHAPE = 3, 7, 2, (2, 8, 8)


def network(name: str = "convnet", dtype: torch.dtype = torch.float64, width: int = 5) -> nn.Module:
    load_library = build_network(NetworkConfig(name=name, width=width, depth=2), SHAPE, CLASSES)  # type: ignore[arg-type]
    return initialise_(load_library, torch.Generator().manual_seed(1)).to(dtype).requires_grad_(False)


def images(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn((CLASSES, count, *SHAPE), generator=draws, dtype=torch.float64).to(dtype)


def slow_gradients(net: nn.Module, of_class: Tensor, label: int, *, create_graph: bool) -> list[Tensor]:
    net.requires_grad_(True)
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    loss = nn.functional.cross_entropy(net(of_class), torch.full((len(of_class),), label))
    found = list(torch.autograd.grad(loss, weights, create_graph=create_graph))
    return [gradient.flatten(1) for gradient in found]


def slow_distance(kind: str, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(real, synthetic, strict=True):
        if kind == "mse":
            total = total + (a - b).pow(2).sum()
        elif kind == "l1":
            total = total + (a - b).abs().sum()
        else:
            for row_a, row_b in zip(a, b, strict=True):
                total = total + 1 - (row_a @ row_b) / (row_a.norm() * row_b.norm() + 1e-6)
    return total
