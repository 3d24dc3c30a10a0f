"""Engines on a few generated images."""

import torch
from torch import Tensor

from condense.data.normalisation import Normalisation
from condense.flow.bits import UniformDensity
from condense.learners.networks import NetworkConfig, build_network
from condense.matching.config import MatchingConfig
from condense.matching.engine import Engine
from condense.matching.objectives import build_objective
from condense.matching.schedule import Schedule
from condense.synthetic.config import ImagesConfig
from condense.synthetic.soft_labels import initial_logits
from condense.synthetic.synthetic_set import initial_set
from condense.workers.collective import Alone
from condense.workers.mesh import Mesh, build_mesh

CLASSES, SHAPE = 4, (1, 8, 8)


class QuadraticDensity(UniformDensity):
    """ln p = -sum x^2: a closed form whose gradient is known."""

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.square().sum((1, 2, 3))


# Plain gradient descent on a sigmoid's argument: a step tells the gradient.
PLAIN = ImagesConfig(bound="sigmoid", parameterisation="pixels", optimizer="sgd", momentum=0, schedule="constant")


def real_images() -> list[Tensor]:
    draws = torch.Generator().manual_seed(5)
    return [torch.randint(256, (12 + label, *SHAPE), generator=draws, dtype=torch.uint8) for label in range(CLASSES)]


def engine(
    *,
    ipc: int = 1,
    bits_weight: float = 0.5,
    owned: range = range(CLASSES),
    mesh: Mesh | None = None,
    images: ImagesConfig | None = None,
    matching: MatchingConfig | None = None,
    objective: str = "gradient",
    device: str = "cpu",
) -> Engine:
    real = [real_images()[label].to(device) for label in owned]
    images = images or ImagesConfig()
    logits = initial_logits(owned, ipc, CLASSES) if images.labels == "soft" else None
    return Engine(
        matching=matching or MatchingConfig(real_batch=6, updates=1, steps=2 if ipc > 1 else 1, inner_epochs=2),
        images=images,
        bits_weight=bits_weight,
        schedule=Schedule(4),
        seed=3,
        objective=build_objective(objective, distance=None, precision=torch.float32),
        network=build_network(NetworkConfig(width=6, depth=2), SHAPE, CLASSES).to(device),
        density=QuadraticDensity(SHAPE) if bits_weight else None,
        normalisation=Normalisation((0.5,), (0.25,)),
        real=real,
        synthetic=initial_set(images, real, owned, ipc, seed=3, logits=logits),
        class_count=CLASSES,
        mesh=mesh or build_mesh(Alone()),
    )
