"""Distribution matching (DM): the synthetic images of a class should have the mean embedding of the real ones.

Zhao, Bilen 2023, eq. 5, with psi a network without its last layer, drawn anew for every step and never trained:

    D_c = || mean_i psi(real_i) - mean_j psi(synthetic_j) ||^2

It is first order: only the embedding is differentiated, not a gradient.

Equal means leave most of a distribution open. `matching.distance: mmd` compares all of it, by the maximum mean
discrepancy (Gretton et al. 2012; for condensation Zhang et al. 2024, "M3D"):

    D_c = 1/2 mean_ii' k(r_i, r_i') + 1/2 mean_jj' k(s_j, s_j') - mean_ij k(r_i, s_j),   k(a, b) = h exp(-|a - b|^2 / h)

Here r are embeddings of real images and s of synthetic ones. h is the mean squared distance between two real images of
the class, as this network sees them. The kernel and its width are ours; a large h would give the squared distance of
the means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condense.errors import ConfigError
from condense.learners.networks import Learner, in_precision
from condense.workers.devices import network_batch


class DistributionMatching:
    """The objective `distribution`: squared distances (C,) between the mean embeddings of each class, or halves of the
    squared maximum mean discrepancies."""

    fresh_network = True

    def __init__(self, *, distance: str | None = None, precision: torch.dtype = torch.float32) -> None:
        if distance not in (None, "mmd"):
            raise ConfigError(
                f"objective distribution has no distance {distance!r}",
                "set matching.distance to mmd, or leave it out to compare means",
            )
        self.whole = distance == "mmd"
        self.precision = precision

    def target(self, network: Learner, real: Tensor, classes: Tensor) -> Tensor:
        """Of real images (C, B, channels, H, W) the mean embeddings (C, features), or all (C, B, features), in
        float32; no graph is kept."""
        cast, parts = in_precision(network, self.precision), real.flatten(0, 1).split(network_batch(real.device))
        with torch.no_grad():
            embedded = torch.cat([cast.embed(part.to(self.precision)).float() for part in parts])
            by_class = embedded.view(*real.shape[:2], -1)
            return by_class if self.whole else by_class.mean(1)

    def distances(self, network: Learner, target: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Returns distances (C,) of the synthetic images (C, ipc, channels, H, W) to the target; differentiable in
        them.
        """
        network, synthetic = in_precision(network, self.precision), in_precision(synthetic, self.precision)
        embedded = network.embed(synthetic.flatten(0, 1)).to(target.dtype).unflatten(0, synthetic.shape[:2])
        if self.whole:
            return half_discrepancies(target, embedded)
        distances: Tensor = (embedded.mean(1) - target).square().sum(1)
        return distances

    def __call__(self, network: Learner, real: Tensor, synthetic: Tensor, classes: Tensor) -> Tensor:
        """Distances (C,) between real (C, B, ...) and synthetic (C, ipc, ...) images of the same classes."""
        return self.distances(network, self.target(network, real, classes), synthetic, classes)


def half_discrepancies(real: Tensor, synthetic: Tensor) -> Tensor:
    """D_c (C,) of embeddings (C, B, features), B of at least 2, and (C, n, features)."""
    apart = squared_distances(real, real)
    count = real.shape[1]
    width = (apart.sum((1, 2)) / (count * (count - 1))).clamp_min(torch.finfo(apart.dtype).tiny)

    def kernel(squared: Tensor) -> Tensor:
        return width * torch.exp(-squared / width[:, None, None]).mean((1, 2))

    among = kernel(apart) + kernel(squared_distances(synthetic, synthetic))
    return among / 2 - kernel(squared_distances(real, synthetic))


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """(C, n, m) of (C, n, features) and (C, m, features)."""
    sums = left.square().sum(2)[:, :, None] + right.square().sum(2)[:, None]
    return (sums - 2 * left @ right.transpose(1, 2)).clamp_min(0)
