"""Builds the parts of a run from its config: for the run itself, and for the measurements before one."""

from __future__ import annotations

import math
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
from condense.workers.context import WorkerContext
from condense.workers.mesh import Mesh
from condense.workers.time_budget import TimeBudget

EVALUATIONS = 5  # in a run that does not say how many
FOLLOWED = 20  # in a run that ends when their curve has settled


def build_engine(
    config: RunConfig,
    class_count: int,
    real: Sequence[Tensor],
    normalisation: Normalisation,
    penalty: Density | None,
    synthetic: SyntheticSet,
    mesh: Mesh,
) -> Engine:
    """Builds the engine of one slice.

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
    """Returns the flow at the precision that images are optimised against; None where bits weigh nothing."""
    if density is None or (config.bits_weight == 0 and config.bits_target is None):
        return None
    return at_precision(density, config.bits_precision, device)


def build_images(config: RunConfig, source: DataSource, real: Sequence[Tensor], classes: range) -> SyntheticSet:
    """Makes the images that a run of these classes begins with, and their labels; `real`: their real images."""
    start, ipc = starting_images(config, source), config.images_per_class
    own = None if start is None else start[classes.start : classes.stop]
    logits = None
    if config.images.labels == "soft":
        taught = starting_labels(config, source)
        mine = None if taught is None else taught[classes.start : classes.stop]
        logits = initial_logits(classes, ipc, len(source.class_names), mine)
    return initial_set(config.images, real, classes, ipc, seed=config.seed, start=own, logits=logits)


def build_evaluator(config: RunConfig, class_count: int, normalisation: Normalisation) -> Evaluator:
    """Builds what trains and tests fresh networks by the run's recipe."""
    return Evaluator(
        recipe=RECIPES[config.evaluation.recipe],
        network=config.network,
        classes=class_count,
        normalisation=normalisation,
        seed=config.seed,
        flip=config.evaluation.flip,
    )


def build_budget(config: RunConfig, source: DataSource, started: float, context: WorkerContext) -> TimeBudget:
    """Returns the clock of a run, which says how much time is left and when the set is evaluated.

    Args:
        config: of the run.
        source: the data.
        started: when the run began, by `time.perf_counter`.
        context: of the worker.
    """
    within = config.time_budget_s is not None and not config.evaluation.every
    return TimeBudget(
        config.time_budget_s,
        started=started,
        evaluations=planned_evaluations(config),
        every=0 if within else evaluation_interval(config),
        ending=_ending(config, source, context.collective.size),
        collective=context.collective,
        device=context.device,
    )


def planned_evaluations(config: RunConfig) -> int:
    """Returns how many evaluations a run makes that does not say `evaluation.every`."""
    return FOLLOWED if config.evaluation.patience else EVALUATIONS


def evaluation_interval(config: RunConfig) -> int:
    """Returns the outer steps between two evaluations of a run without a time budget."""
    return config.evaluation.every or math.ceil(config.outer_steps / planned_evaluations(config))


def _ending(config: RunConfig, source: DataSource, workers: int) -> float:
    """Returns what the end of a run takes, in evaluations during it: by the images that pass through a learner."""
    asked = config.evaluation
    if not asked.test:
        return 0.0
    images = len(source.class_names) * config.images_per_class * config.images.factor**2
    trained = 3 * RECIPES[asked.recipe].epochs * images  # forward, and twice that back
    validation = min(asked.validation_images, source.count("validation"))
    groups = math.ceil(asked.learners / workers) / math.ceil(asked.validation_learners / workers)
    sets = 5 if asked.controls else 1
    return sets * groups * (trained + source.count("test")) / (trained + validation)
