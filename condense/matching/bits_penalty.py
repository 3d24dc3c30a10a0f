"""Measures the bits of a slice's synthetic images, and their gradient at the pixels.

mean_i bits_per_dim(S_i)          (METHOD section 3), over all images of the whole set
"""

from __future__ import annotations

import torch
from torch import Tensor

from condense import seeding
from condense.flow.bits import Density, bits_per_dim
from condense.workers.collective import Collective
from condense.workers.devices import flow_batch, to_device


class BitsPenalty:
    """The mean bits per dim of the whole set, as the images of one slice add to it.

    The workers that hold the slice each measure a part of its images.
    """

    def __init__(self, density: Density, owned: range, seed: int, count: int, over_replicas: Collective) -> None:
        """
        Args:
            density: what measures.
            owned: the labels of the slice's classes.
            seed: the run's; each class has dequantisation noise of its own, whoever owns it.
            count: images of the whole set.
            over_replicas: the workers that hold the slice.
        """
        self.density, self.owned, self.seed = density, owned, seed
        self.count, self.over_replicas = count, over_replicas

    def measure(self, images: Tensor, update: int) -> tuple[Tensor, Tensor]:
        """Returns this worker's share of the mean bits per dim, and its gradient at the images.

        The gradient is zero at the images that another worker of the slice measures.

        Args:
            images: (C, ipc, channels, H, W) in [0, 1].
            update: the image update, which decides the noise.
        """
        draws = (seeding.generator(self.seed, "dequantisation", step=update, index=label) for label in self.owned)
        noise = torch.stack([torch.rand(images.shape[1:], generator=drawn) for drawn in draws])
        flat, noise = images.flatten(0, 1), to_device(noise, images.device).flatten(0, 1)
        total, gradient = torch.zeros((), device=images.device), torch.zeros_like(flat)
        rank, size = self.over_replicas.rank, self.over_replicas.size
        first, end = (len(flat) * (rank + i) // size for i in (0, 1))
        batch = flow_batch(flat)
        for start in range(first, end, batch):
            rows = slice(start, min(start + batch, end))
            leaf = flat[rows].detach().requires_grad_()
            bits = bits_per_dim(self.density, leaf, noise[rows]).sum() / self.count
            gradient[rows] = torch.autograd.grad(bits, leaf)[0]
            total = total + bits.detach()
        return total, gradient.view_as(images)
