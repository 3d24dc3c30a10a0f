"""Networks that are trained on a toy set."""

import torch
from torch import Tensor

from condense.data.normalisation import Normalisation
from condense.learners.networks import NetworkConfig, build_network
from condense.matching.batches import RealBatches
from condense.matching.config import MatchingConfig
from condense.matching.learner_training import LearnerTraining
from condense.workers.collective import Alone

CLASSES, SHAPE, SEED = 4, (1, 8, 8), 3


NORMALISATION = Normalisation((0.5,), (0.25,))


def real_images() -> list[Tensor]:
    draws = torch.Generator().manual_seed(5)
    return [torch.randint(256, (12 + label, *SHAPE), generator=draws, dtype=torch.uint8) for label in range(CLASSES)]


def training(matching: MatchingConfig, owned: range = range(CLASSES), collective: object = None) -> LearnerTraining:
    batches = RealBatches([real_images()[label] for label in owned], list(owned), matching.real_batch, SEED)
    return LearnerTraining(
        matching=matching,
        network=build_network(NetworkConfig(width=6, depth=2), SHAPE, CLASSES),
        normalisation=NORMALISATION,
        batches=batches,
        seed=SEED,
        class_count=CLASSES,
        flip=False,
        collective=collective or Alone(),  # type: ignore[arg-type]
    )


def weights(of: LearnerTraining) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in of.network.parameters()])
