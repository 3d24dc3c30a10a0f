"""Evaluations of a toy set."""

import torch
from torch import Tensor

from condense.data.normalisation import Normalisation
from condense.learners.evaluation import Evaluator
from condense.learners.networks import NetworkConfig
from condense.learners.recipes import Recipe

SHAPE = (1, 8, 8)


def toy(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes that differ in brightness."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = torch.randint(100, (count, *SHAPE), generator=draws)
    return (noise + 100 * labels[:, None, None, None]).to(torch.uint8), labels


MLPS = NetworkConfig(name="mlp", width=8, depth=1)


def evaluator(recipe: Recipe, network: NetworkConfig = MLPS) -> Evaluator:
    return Evaluator(recipe, network, 2, Normalisation((0.4,), (0.2,)), seed=1)


QUICK = Recipe("quick", epochs=20, augmentation="none")
