"""Predicts what a run will take: time, memory of each worker, checkpoints, and the best number of workers.

    time = start + reading + outer_steps * step + evaluations + end

The parts are measured on this machine (calibration.py). A step of another number of workers is taken as proportional to
the classes of the largest slice and, but for the bits, to the network replicas of each worker.
"""

from __future__ import annotations

import math
import os

import torch

from condense.condensation.build import evaluation_interval
from condense.condensation.calibration import Costs, calibrate
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.share import REAL_BITS_IMAGES
from condense.data.slices import HELD_BYTES
from condense.data.sources import DataSource
from condense.learners.evaluation_process import THREADS
from condense.learners.recipes import RECIPES
from condense.workers.estimate import (
    MIB,
    RAY_END_S,
    RAY_MIB,
    RAY_START_S,
    TRACKED_MIB,
    TRACKED_S,
    Estimate,
    Layout,
    available_mib,
    best_of,
)
from condense.workers.mesh import mesh_shape, most_workers
from condense.workers.storage import KEEP

AT_BITS_MEASUREMENTS = 20  # of a slice's images: the bisections over JPEG's qualities and blurs
TARGET_ATTEMPTS = 4  # whole runs that a bits_target takes, two to six


def estimate(config: RunConfig) -> Estimate:
    """Predicts what a run of this config takes on machines like this one.

    Raises:
        CondenseError: what the run itself would raise before its first step.
    """
    source, flow = open_checked(config)
    classes = len(source.class_names)
    workers, threads = _layout(config, classes)
    shared = max(workers, 1)
    slices, columns = mesh_shape(shared, config.replicas)
    together = math.ceil(config.evaluation.learners / shared) if torch.cuda.is_available() else 1
    alone = config.model_copy(update={"replicas": config.replicas // columns, "workers": 0, "max_workers": None})
    costs = calibrate(alone, math.ceil(classes / slices), threads, together)
    chosen = predicted(config, source, flow is not None, costs, workers, threads)
    cores = os.cpu_count() or 1
    most = torch.cuda.device_count() or cores
    counts = [n for n in (0, 1, 2, 4, 8, 16, 32, 64) if n <= most_workers(min(n, most), classes, config.replicas)]
    others = tuple(
        predicted(config, source, flow is not None, costs, n, cores // max(n, 1)) for n in counts if n != workers
    )
    available = available_mib()
    kept = KEEP * math.ceil(costs.checkpoint * classes / costs.classes)
    best = best_of([chosen, *others], available)
    return Estimate(chosen, others, best, kept, costs.device, available, costs.in_words())


def _layout(config: RunConfig, classes: int) -> tuple[int, int]:
    """(workers, threads of each) as the run lays them out on this machine."""
    cores, cards = os.cpu_count() or 1, torch.cuda.device_count()
    most = most_workers(cards or cores // 2, classes, config.replicas)
    workers = most if config.workers == "auto" else config.workers
    if workers == 0:
        return 0, torch.get_num_threads()
    return workers, config.cpus_per_worker or max(1, cores // workers)


def predicted(
    config: RunConfig, source: DataSource, measured: bool, costs: Costs, workers: int, threads: int
) -> Layout:
    """Predicts a layout's seconds and memory from the costs. `measured` says whether a flow measures bits."""
    shared = max(workers, 1)
    slices, columns = mesh_shape(shared, config.replicas)
    classes = len(source.class_names)
    part = math.ceil(classes / slices) / costs.classes  # of the slice that was calibrated
    networks = (costs.outer_step - costs.once) * config.replicas / columns / costs.replicas
    outer_step = networks + costs.once / columns
    slower = _slower(costs, threads)
    at = config.evaluation
    attempts = 1 if config.bits_target is None else TARGET_ATTEMPTS
    followed = attempts * math.ceil(config.outer_steps / evaluation_interval(config))
    test_images = source.count("test") if at.test else 0
    validation_images = min(at.validation_images, source.count("validation"))
    sets = 0 if not at.test else 1 + ((4 if measured else 2) if at.controls else 0)
    epochs = RECIPES[at.recipe].epochs

    def one(tested: int) -> float:
        return costs.learner + costs.epoch * epochs + costs.tested * tested

    def learners(count: int, tested: int) -> float:
        return slower * math.ceil(count / shared) * one(tested)

    steps_s = attempts * config.outer_steps * outer_step * slower * part
    following = followed * learners(at.validation_learners, validation_images)
    if at.beside:  # by one process, while the steps go on: the run waits for the last, or for what is left then
        each = _slower(costs, THREADS) * at.validation_learners * one(validation_images)
        following = max(each, followed * each - steps_s)
    whole = classes * config.images_per_class
    own = math.ceil(whole / slices)
    counted = min(REAL_BITS_IMAGES // slices, whole * 100) + whole + own * (followed + attempts)
    if sets > 1:
        counted += own * (AT_BITS_MEASUREMENTS + 4)
    seconds = {
        "starting": costs.imports + costs.opening + (RAY_START_S + costs.imports + costs.opening if workers else 0),
        "reading": costs.reading * (sum(source.class_counts) + validation_images + test_images) / slices
        + costs.building,
        "outer steps": steps_s,
        "evaluations": following + sets * learners(at.learners, test_images) + slower * costs.bits * counted,
        "ending": (RAY_END_S if workers else 0) + (TRACKED_S if config.tracking_uri != "none" else 0),
    }
    if config.time_budget_s is not None:
        seconds["outer steps"] = max(0.0, config.time_budget_s - seconds["reading"] - seconds["evaluations"])
    image = math.prod(source.shape) / MIB
    largest = sum(sorted(source.class_counts, reverse=True)[: math.ceil(classes / slices)])
    held = largest + validation_images + min(test_images, HELD_BYTES // math.prod(source.shape))
    working = costs.peak - costs.imported - costs.images
    clustered = 2 * 4 * max(source.class_counts) * image if at.controls and at.test else 0.0  # float copies of a class
    memory = costs.imported + held * image + max(working * max(part, 1), clustered)
    memory += RAY_MIB if workers else 0
    memory += TRACKED_MIB if config.tracking_uri != "none" else 0
    return Layout(workers, threads, seconds, memory)


def _slower(costs: Costs, threads: int) -> float:
    """Returns the time of so many threads over that of those calibrated, by Amdahl's law between those measured."""
    cores = os.cpu_count() or 1
    if threads == costs.threads or cores == 1 or costs.outer_step == costs.outer_step_other:
        return 1.0
    alone, all_ = costs.outer_step, costs.outer_step_other
    if costs.threads != 1:
        alone, all_ = all_, alone
    spread = (alone - all_) / (1 - 1 / cores)  # seconds of one thread that more threads share
    seconds = alone - spread * (1 - 1 / threads)
    return seconds / costs.outer_step
