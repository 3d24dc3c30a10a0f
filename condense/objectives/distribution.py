"""Distribution matching (DM): the synthetic images of a class should have the real ones' mean embedding.

Zhao, Bilen 2023, eq. 5, with psi a network without its last layer, drawn anew for every step and never trained:

    D_c = || mean_i psi(real_i) - mean_j psi(synthetic_j) ||^2

First order: only the embedding is differentiated, not a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condense.errors import ConfigError
from condense.networks import Learner, in_precision

CPU_PIECE = 40  # real images per class and pass on a CPU, as in gradient.py: activations stay in its cache


class DistributionMatching:
    """The objective `distribution`: squared distances (C,) between the mean embeddings of each class."""

    fresh_network = True

    def __init__(self, *, distance: str | None = None, precision: torch.dtype = torch.float32) -> None:
        if distance is not None:
            raise ConfigError(
                f"objective distribution has one distance, the squared one, not {distance!r}",
                "leave matching.distance out",
            )
        self.precision = precision

    def target(self, network: Learner, real: Tensor, classes: Tensor) -> Tensor:
        """Mean embeddings (C, features) of real images (C, B, channels, H, W); no graph is kept."""
        cast = in_precision(network, self.precision)
        piece = CPU_PIECE if real.device.type == "cpu" else real.shape[1]
        with torch.no_grad():
            return torch.stack([self._mean(cast, images, piece) for images in real])

    def _mean(self, network: Learner, images: Tensor, piece: int) -> Tensor:
        embedded = [network.embed(part.to(self.precision)).float().sum(0) for part in images.split(piece)]
        return torch.stack(embedded).sum(0) / len(images)

    def distances(self, network: Learner, target: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Distances (C,) of the synthetic images (C, ipc, channels, H, W) to the target; differentiable in them."""
        network, synthetic = in_precision(network, self.precision), in_precision(synthetic, self.precision)
        embedded = network.embed(synthetic.flatten(0, 1))
        means = embedded.to(target.dtype).unflatten(0, synthetic.shape[:2]).mean(1)
        distances: Tensor = (means - target).square().sum(1)
        return distances

    def __call__(self, network: Learner, real: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Distances (C,) between real (C, B, ...) and synthetic (C, ipc, ...) images of the same classes."""
        return self.distances(network, self.target(network, real, classes), synthetic, classes)
