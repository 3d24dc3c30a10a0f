"""Trains a flow by maximum likelihood: the loop behind `condense flow fit`.

Every worker runs `train` with the same config and its own share of each batch; in one process there is one worker.
Every draw is named by its step and made whole by all. So a run that was killed and resumed ends in the same bytes as
one that was not, and the workers' shares together are the batch of one worker. For the same reason the schedule counts
steps, not seconds.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condense.data.config import DataConfig
from condense.errors import ConfigError, NonFiniteError, SourceError
from condense.flow.architecture import Flow
from condense.flow.bits import bits_per_dim, measure
from condense.flow.caution import caution
from condense.flow.fit_checkpoint import FitState, restore_, to_checkpoint
from condense.flow.mixture import Mixture, random_batch
from condense.flow.muon import Muon
from condense.flow.recipe import FlowFitConfig, learning_rate_at
from condense.flow.registry import build
from condense.flow.repeats import fitted_before, recipe_of
from condense.flow.store import check_writable, load_card, load_flow, save_flow
from condense.image_grid import image_grid
from condense.pixels import dequantise, quantise
from condense.seeding import generator
from condense.workers.checkpoints import LocalCheckpoints
from condense.workers.collective import Alone, raise_together, sum_all_
from condense.workers.context import Progress, WorkerContext
from condense.workers.devices import local_device
from condense.workers.interruption import RESUMING, interruption_explained
from condense.workers.memory import keep_freed_memory
from condense.workers.tracking import NullTracker, Tracker

SAMPLES = 36  # pictures of what the flow has learned, at each evaluation
SAMPLE_TEMPERATURE = 0.7  # of the base density: at 1, a flow this small draws mostly noise
TRACKED_POINTS = 200  # of the training curve


@dataclass(frozen=True)
class Fitted:
    """A trained flow on the CPU, and what its file says of it."""

    flow: Flow
    card: dict[str, Any]


@dataclass(frozen=True)
class FitResult:
    """path, digest and card of the stored flow; `repeated`: an earlier fit had made it."""

    path: Path
    digest: str
    card: dict[str, Any]
    repeated: bool = False


def fit(
    config: FlowFitConfig,
    *,
    resume: bool = False,
    anew: bool = True,
    progress: Callable[[Progress], None] | None = None,
    tracker: Tracker | None = None,
) -> FitResult:
    """Trains a flow in this process, on its GPU if it has one, and stores it with its card at `config.output`.

    Args:
        config: the recipe; `workers` is not looked at.
        resume: go on from the checkpoint beside the output, if there is one; the result is that of an unbroken run.
        anew: False returns the flow that is at the output, if the same recipe made it of the same data.
        progress: called after each step; what it raises ends the run.
        tracker: told of the curves and shown samples.

    Raises:
        OutputError: the output's folder cannot be written; found out before training.
        CondenseError: as `train`.
    """
    check_writable(config.output)
    if not anew and (made := fitted_before(config, open_mixture(config), config.output)) is not None:
        return FitResult(config.output, *made, repeated=True)
    keep_freed_memory()
    if not resume:
        config.checkpoint.unlink(missing_ok=True)
    checkpoints = LocalCheckpoints(config.checkpoint.parent, config.checkpoint.name)
    with interruption_explained(progress or (lambda at: None), checkpoints.latest_step, RESUMING) as tell:
        fitted = train(config, WorkerContext(Alone(), tracker or NullTracker(), checkpoints, tell, local_device()))
    assert fitted is not None
    return store(fitted, config)


def store(fitted: Fitted, config: FlowFitConfig) -> FitResult:
    """Writes the flow with its card to `config.output`, and removes the checkpoint beside it; raises OutputError."""
    digest = save_flow(fitted.flow, config.output, fitted.card)
    config.checkpoint.unlink(missing_ok=True)
    return FitResult(config.output, digest, fitted.card)


def train(config: FlowFitConfig, context: WorkerContext) -> Fitted | None:
    """Returns the flow of a recipe; goes on from the latest checkpoint. None on all workers but the first.

    Raises:
        SourceError: data that is missing, damaged, constant, or of fewer channels than the flow.
        ConfigError: `start_from` is of another architecture. FlowError: it cannot be loaded.
        CheckpointError: a damaged checkpoint, or one of another recipe.
        NonFiniteError: the loss stopped being a number; names the step.
    """
    clock = _Clock(context)
    mixture, images, held_out = _load(config, context)
    state, identity = fresh_state(config, images, context), config.identity()
    checkpoint = context.checkpoints.latest()
    if checkpoint is not None:
        restore_(state, checkpoint, identity)
        context.going_on("fitting", state.step, config.steps)
    first = context.first
    clock.before = state.cpu_seconds, state.seconds
    tracked_every = max(1, config.steps // TRACKED_POINTS)
    while state.step < config.steps:
        values = {"train_bits_per_dim": take_step_(state, config, images, context)}
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            bits = measure(state.average, held_out, seed=config.seed, device=context.device).mean
            values["held_out_bits_per_dim"] = bits
            clock.read_(state)
            times = {"cpu_seconds": round(state.cpu_seconds, 1), "seconds": round(state.seconds, 1)}
            state.curve.append({"step": state.step, **times, "bits_per_dim": bits})
            if first:
                context.tracker.images("samples", _samples(state.average, config.seed, context.device), state.step)
        if first and (state.step % tracked_every == 0 or "held_out_bits_per_dim" in values):
            rate = learning_rate_at(config, state.step - 1)
            context.tracker.metrics({**values, "learning_rate": rate}, state.step)
        if state.step % config.checkpoint_every == 0:
            clock.read_(state)
            context.checkpoints.save(to_checkpoint(state, identity) if first else None, {"step": state.step, **values})
        if first:
            context.progress(
                Progress("fitting", state.step, config.steps, values, milestone="held_out_bits_per_dim" in values)
            )
    clock.read_(state)
    if not first:
        return None
    card = _card(config, mixture, state, len(images), context)
    return Fitted(state.average.cpu(), card)


def open_mixture(config: FlowFitConfig) -> Mixture:
    """Returns the recipe's sources, opened but not read; raises SourceError and ConfigError."""
    data = DataConfig(
        image_size=config.architecture.image_size,
        validation_fraction=config.validation_fraction,
        root=config.root,
        download=config.download,
    )
    return Mixture(config.sources, data, config.architecture.channels, seed=config.seed)


class _Clock:
    """Adds what this process spends, from loading on, to the times of a state; CPU-seconds are all workers'."""

    def __init__(self, context: WorkerContext) -> None:
        self.before = 0.0, 0.0
        self._context = context
        self._started = time.process_time(), time.perf_counter()

    def read_(self, state: FitState) -> None:
        """Sets the times; every worker must call it."""
        spent = torch.tensor(time.process_time() - self._started[0], dtype=torch.float64, device=self._context.device)
        state.cpu_seconds = self.before[0] + float(self._context.collective.sum_(spent))
        state.seconds = self.before[1] + time.perf_counter() - self._started[1]


def _load(config: FlowFitConfig, context: WorkerContext) -> tuple[Mixture, Tensor, Tensor]:
    """Returns the sources, their train images and the held-out ones; what one worker cannot read stops all."""
    failure: SourceError | None = None
    try:
        mixture = open_mixture(config)
        images, held_out = mixture.train(), mixture.validation(config.evaluation_images)
    except SourceError as error:
        failure = error
    raise_together(context.collective, failure, context.device)
    return mixture, images, held_out


def fresh_state(config: FlowFitConfig, images: Tensor, context: WorkerContext) -> FitState:
    """Returns a fit before its first step, the same on every worker; images: the train images, uint8 (N, C, H, W)."""
    # nn layers draw their initial weights from the global generator: it is set aside and given back.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(config.seed, "flow-weights").get_state())
        flow = build(config.architecture)
    if config.start_from is None:
        draws = generator(config.seed, "flow-initial")
        batch = random_batch(images, config.initial_images, config.augmentation, draws)
        x = dequantise(batch, torch.rand(batch.shape, generator=draws))
        flow.initialise_(x, generator(config.seed, "flow-rotation"))
    else:
        start = load_flow(config.start_from)
        if start.description != config.architecture:
            raise ConfigError(
                f"start_from {config.start_from} is of another architecture: {start.description}",
                "set architecture to the same",
            )
        flow.load_state_dict(start.state_dict())
    flow.to(context.device)
    with torch.no_grad():
        for tensor in flow.state_dict().values():  # the first worker's: eigenvectors can differ between kinds of CPU
            context.collective.sum_(tensor if context.collective.rank == 0 else tensor.zero_())
    average = copy.deepcopy(flow).requires_grad_(False)
    if config.optimiser == "muon":
        return FitState(flow, average, Muon(flow.parameters(), lr=config.learning_rate))
    return FitState(flow, average, torch.optim.Adam(flow.parameters(), lr=config.learning_rate, betas=(0.9, 0.99)))


def take_step_(state: FitState, config: FlowFitConfig, images: Tensor, context: WorkerContext) -> float:
    """Returns one step of the optimiser on the mean bits per dimension of a batch, which it returns."""
    rank, size, device = context.collective.rank, context.collective.size, context.device
    draws = generator(config.seed, "flow-batch", step=state.step)
    batch = random_batch(images, config.batch_size, config.augmentation, draws, blended=config.blended)
    draws = generator(config.seed, "flow-dequantisation", step=state.step, device=device)
    noise = torch.rand(batch.shape, generator=draws, device=device)
    share = slice(rank * len(batch) // size, (rank + 1) * len(batch) // size)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        bits = bits_per_dim(state.flow, batch[share].to(device), noise[share])
    loss = bits.mean() * (len(bits) / len(batch))
    state.optimiser.zero_grad()
    loss.backward()
    gradients = [parameter.grad for parameter in state.flow.parameters() if parameter.grad is not None]
    total = loss.detach()
    sum_all_(context.collective, [total, *gradients])
    value = float(total)
    rate = learning_rate_at(config, state.step)
    state.step += 1
    if not math.isfinite(value):
        raise NonFiniteError(f"{config.name}: the loss at step {state.step} is {value}", "lower learning_rate")
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    norm = float(torch.nn.utils.clip_grad_norm_(state.flow.parameters(), config.gradient_norm))
    if not math.isfinite(norm):
        raise NonFiniteError(f"{config.name}: the gradient at step {state.step} is {norm}", "lower learning_rate")
    state.optimiser.step()
    # A mean over the steps so far until the decay is reached, so that the start is forgotten early.
    decay = min(config.averaging, state.step / (state.step + 10))
    with torch.no_grad():
        for averaged, parameter in zip(state.average.parameters(), state.flow.parameters(), strict=True):
            averaged.lerp_(parameter, 1 - decay)
    return value


def _samples(flow: Flow, seed: int, device: torch.device) -> Tensor:
    """Returns a picture of what the flow draws, from the same noise at each step: uint8 (3, H, W)."""
    drawn = flow.sample(SAMPLES, generator(seed, "flow-samples", device=device), SAMPLE_TEMPERATURE)
    return image_grid(quantise(drawn).cpu())


def _card(
    config: FlowFitConfig, mixture: Mixture, state: FitState, train_images: int, context: WorkerContext
) -> dict[str, Any]:
    """Returns what the stored flow says of itself; the only place that reads the test splits."""
    frozen = copy.deepcopy(state.average).freeze_()
    tests = {}
    for name, images in mixture.tests().items():
        report = measure(frozen, images, seed=config.seed, device=context.device)
        tests[name] = {
            "images": len(images),
            "bits_per_dim": round(report.mean, 4),
            "png_bits_per_dim": round(float(report.png_bytes.double().mean()) * 8 / images[0].numel(), 4),
        }
    return {
        "name": config.name,
        "recipe": recipe_of(config),
        "sources": mixture.digests,
        "train_images": train_images,
        "start": None if config.start_from is None else _start(config.start_from),
        "parameters": sum(parameter.numel() for parameter in state.flow.parameters()),
        "cpu_seconds": round(state.cpu_seconds, 1),
        "seconds": round(state.seconds, 1),
        "workers": context.collective.size,
        "threads": torch.get_num_threads(),
        "device": context.device.type,
        "torch": str(torch.__version__),
        "held_out": tests,
        "caution": caution(frozen, device=context.device),
        "curve": [{**point, "bits_per_dim": round(point["bits_per_dim"], 4)} for point in state.curve],
    }


def _start(name_or_path: str) -> dict[str, Any]:
    card = load_card(name_or_path)
    return {key: card.get(key) for key in ("digest", "recipe", "cpu_seconds", "held_out", "curve", "start")}
