"""Dataset condensation by gradient matching, as the paper describes it and nothing more.

Zhao, Mopuri, Bilen 2021, algorithm 1: for each class, the gradient of the loss on a real batch and on the synthetic
images of that class, the row-wise cosine distance between them, and a step of SGD on the images' float pixels. One
class at a time, one automatic differentiation through the other, float32, PyTorch's own layers.

    python -m benchmarks.reference.dc --shape 1 28 28 --ipc 1

prints the CPU-seconds of its parts as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three blocks of 3x3 convolution, instance norm with scale and shift, ReLU, 2x2 average pool; then linear."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, _, side = shape
        blocks: list[nn.Module] = []
        for level in range(3):
            blocks += [
                nn.Conv2d(channels if level == 0 else width, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (side // 8) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def distance(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Sum over weights and their output rows of 1 - cosine; biases and norms, of one dimension, are left out."""
    total = torch.zeros(())
    for a, b in zip(real, synthetic, strict=True):
        if a.ndim == 1:
            continue
        a, b = a.flatten(1), b.flatten(1)
        total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def match(
    network: nn.Module, real: list[Tensor], synthetic: Tensor, optimizer: torch.optim.Optimizer, batch: int
) -> float:
    """One matching step: every class's distance, their sum's gradient, one step on the images.

    Args:
        real: float (n, channels, H, W) for each class, normalised.
        synthetic: (classes, ipc, channels, H, W), the parameter of `optimizer`.
        batch: real images per class.

    Returns:
        The sum of the distances.
    """
    parameters = list(network.parameters())
    loss = torch.zeros(())
    for label, images in enumerate(real):
        chosen = images[torch.randperm(len(images))[:batch]]
        target = nn.functional.cross_entropy(network(chosen), torch.full((len(chosen),), label))
        wanted = [gradient.detach() for gradient in torch.autograd.grad(target, parameters)]
        own = synthetic[label]
        reached = nn.functional.cross_entropy(network(own), torch.full((len(own),), label))
        gradients = torch.autograd.grad(reached, parameters, create_graph=True)
        loss = loss + distance(wanted, list(gradients))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train_epoch(network: nn.Module, synthetic: Tensor) -> None:
    """One epoch of SGD on the synthetic set, batches of 256."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images = synthetic.detach().flatten(0, 1)
    labels = torch.arange(synthetic.shape[0]).repeat_interleave(synthetic.shape[1])
    for rows in torch.randperm(len(images)).split(256):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()


def main() -> None:
    """Times a matching step and an inner epoch; the smallest of the repeats, after one that is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 28, 28))
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = tuple(arguments.shape)
    real = [torch.randn(arguments.batch + 1, *shape) for _ in range(10)]
    synthetic = torch.randn(10, arguments.ipc, *shape, requires_grad=True)
    optimizer = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5)
    matches, epochs = [], []
    for _ in range(arguments.repeats + 1):
        network = ConvNet(shape, 10, arguments.width)
        started = time.process_time()
        match(network, real, synthetic, optimizer, arguments.batch)
        matched = time.process_time()
        train_epoch(network, synthetic)
        matches.append(matched - started)
        epochs.append(time.process_time() - matched)
    print(json.dumps({"match": matches[1:], "epoch": epochs[1:]}))


if __name__ == "__main__":
    main()
