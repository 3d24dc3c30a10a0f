"""The parts of a run made from its config: for the run itself, and for what is measured before one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condense.condensation.config import RunConfig
from condense.condensation.warm_start import starting_images, starting_labels
from condense.data.normalisation import Normalisation
from condense.data.sources import DataSource
from condense.flow.bits import Density
from condense.flow.precision import at_precision
from condense.learners.evaluation import Evaluator
from condense.learners.networks import build_network
from condense.learners.recipes import RECIPES
from condense.matching.engine import Engine
from condense.matching.objectives import build_objective
from condense.matching.schedule import Schedule
from condense.synthetic.soft_labels import initial_logits
from condense.synthetic.synthetic_set import SyntheticSet, initial_set
from condense.workers.mesh import Mesh


def build_engine(
    config: RunConfig,
    class_count: int,
    real: Sequence[Tensor],
    normalisation: Normalisation,
    penalty: Density | None,
    synthetic: SyntheticSet,
    mesh: Mesh,
) -> Engine:
    """The engine of one slice.

    Args:
        config: of the run.
        class_count: classes of the whole set.
        real: uint8 (n_c, channels, H, W) for each class of the slice, on the device that computes.
        normalisation: of the whole train split.
        penalty: the flow that is optimised against; None where bits weigh nothing.
        synthetic: the slice's images.
        mesh: of the workers.
    """
    channels, height, width = real[0].shape[1:]
    return Engine(
        matching=config.matching,
        images=config.images,
        bits_weight=config.bits_weight,
        schedule=Schedule(config.outer_steps, config.evaluation.patience),
        seed=config.seed,
        objective=build_objective(
            config.objective,
            distance=config.matching.distance,
            precision=getattr(torch, config.matching.precision),
        ),
        network=build_network(config.network, (channels, height, width), class_count).to(real[0].device),
        density=penalty,
        normalisation=normalisation,
        real=real,
        synthetic=synthetic,
        class_count=class_count,
        mesh=mesh,
        flip=config.evaluation.flip,
    )


def build_penalty(config: RunConfig, density: Density | None, device: torch.device) -> Density | None:
    """The flow at the precision that images are optimised against; None where bits weigh nothing."""
    if density is None or (config.bits_weight == 0 and config.bits_target is None):
        return None
    return at_precision(density, config.bits_precision, device)


def build_images(config: RunConfig, source: DataSource, real: Sequence[Tensor], classes: range) -> SyntheticSet:
    """The images that a run of these classes begins with, and their labels; `real` are theirs."""
    start, ipc = starting_images(config, source), config.images_per_class
    own = None if start is None else start[classes.start : classes.stop]
    logits = None
    if config.images.labels == "soft":
        taught = starting_labels(config, source)
        mine = None if taught is None else taught[classes.start : classes.stop]
        logits = initial_logits(classes, ipc, len(source.class_names), mine)
    return initial_set(config.images, real, classes, ipc, seed=config.seed, start=own, logits=logits)


def build_evaluator(config: RunConfig, class_count: int, normalisation: Normalisation) -> Evaluator:
    """What trains and tests fresh learners as the run's recipe says."""
    return Evaluator(
        recipe=RECIPES[config.evaluation.recipe],
        network=config.network,
        classes=class_count,
        normalisation=normalisation,
        seed=config.seed,
        flip=config.evaluation.flip,
    )
