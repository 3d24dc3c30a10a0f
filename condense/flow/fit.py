"""Training a flow by maximum likelihood: the loop behind `condense flow fit`.

One process, one step at a time. Every draw is named by its step, so a run that was killed and resumed ends in the same
bytes as one that was not. The schedule counts steps, not seconds, for the same reason.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from condense.errors import CheckpointError, ConfigError, NonFiniteError
from condense.files import read_tensors, write_tensors
from condense.flow.bits import bits_per_dim, measure
from condense.flow.glow import Flow, FlowDescription
from condense.flow.mixture import Augmentation, Mixture, random_batch
from condense.flow.store import check_writable, load_card, load_flow, save_flow
from condense.pixels import dequantise
from condense.seeding import generator
from condense.settings import Settings
from condense.settings import digest as settings_digest
from condense.sources import DataConfig

log = logging.getLogger(__name__)


class FlowFitConfig(Settings):
    """How one flow is trained."""

    name: str = Field("flow", min_length=1)
    source: str | tuple[str, ...]  # several are mixed: each image is equally likely
    validation_fraction: float = Field(0.02, gt=0, lt=1)
    root: Path = Path("data")  # where torchvision's datasets are
    download: bool = False

    architecture: FlowDescription = FlowDescription()
    start_from: str | None = None  # a shipped name or a file whose weights training goes on from

    steps: int = Field(4000, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"  # to zero at the last step
    warmup_steps: int = Field(50, ge=0)
    # Of the loss in bits per dimension; larger gradients are scaled down. Usual norms are near 15: this is for spikes,
    # and clipping at 1 was slower (3.98 bits against 3.97 after 50 CPU-seconds, two runs).
    gradient_norm: float = Field(50.0, gt=0)
    averaging: float = Field(0.998, ge=0, lt=1)  # decay of the weights' moving average, which is what is stored
    precision: Literal["float32", "bfloat16"] = "float32"  # of the coupling networks in training; all else is float32
    augmentation: Augmentation = "flip"
    blended: float = Field(0.0, ge=0, lt=1)  # share of images mixed with a constant or noise (see random_batch)
    initial_images: int = Field(512, ge=1)  # batch that initialises the channel mixing
    seed: int = 0

    output: Path = Path("flow.safetensors")
    evaluate_every: int = Field(500, ge=1)
    evaluation_images: int = Field(512, ge=1)
    checkpoint_every: int = Field(500, ge=1)

    @property
    def sources(self) -> tuple[str, ...]:
        """The specs, one or several."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished run keeps its state, beside the output."""
        return self.output.with_suffix(".checkpoint.safetensors")


@dataclass(frozen=True)
class FitProgress:
    """Told after each step. bits_per_dim: of the step's batch. held_out: of validation images, on evaluation steps."""

    step: int
    steps: int
    bits_per_dim: float
    held_out: float | None
    cpu_seconds: float


@dataclass(frozen=True)
class FitResult:
    """path, digest and card of the stored flow."""

    path: Path
    digest: str
    card: dict[str, Any]


@dataclass
class _State:
    """What a checkpoint holds: the flow, its average, Adam's moments, the step, and the record so far."""

    flow: Flow
    average: Flow
    optimiser: torch.optim.Adam
    step: int = 0
    cpu_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def fit(
    config: FlowFitConfig,
    *,
    resume: bool = False,
    progress: Callable[[FitProgress], None] | None = None,
    device: torch.device | str = "cpu",
) -> FitResult:
    """Trains a flow, stores it with its card at `config.output`, and removes the checkpoint.

    Args:
        config: the recipe.
        resume: go on from the checkpoint beside the output, if there is one; the result is that of an unbroken run.
        progress: called after each step; what it raises ends the run.
        device: where the flow is trained.

    Raises:
        SourceError: data that is missing, damaged, constant, or of fewer channels than the flow.
        ConfigError: `start_from` is of another architecture. FlowError: it cannot be loaded.
        CheckpointError: a damaged checkpoint, or one of another config.
        NonFiniteError: the loss stopped being a number; names the step.
        OutputError: the output's folder cannot be written; found out before training.
    """
    started = time.process_time()
    check_writable(config.output)
    mixture = _open_mixture(config)
    train, held_out = mixture.train(), mixture.validation(config.evaluation_images)
    state = _fresh(config, train, device)
    if resume and config.checkpoint.exists():
        _restore_(state, config)
        log.info("%s: resumed at step %d", config.name, state.step)
    before = state.cpu_seconds
    while state.step < config.steps:
        loss = _step_(state, config, train, device)
        state.cpu_seconds = before + time.process_time() - started
        bits = None
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            bits = _held_out_bits(state.average, held_out, config.seed, device)
            state.curve.append({"step": state.step, "cpu_seconds": round(state.cpu_seconds, 1), "bits_per_dim": bits})
        if state.step % config.checkpoint_every == 0:
            _store(state, config)
        if progress is not None:
            progress(FitProgress(state.step, config.steps, loss, bits, state.cpu_seconds))
    card = _card(config, mixture, state, train, device)
    digest = save_flow(state.average, config.output, card)
    config.checkpoint.unlink(missing_ok=True)
    return FitResult(config.output, digest, card)


def learning_rate_at(config: FlowFitConfig, step: int) -> float:
    """The learning rate of step 0, 1 ...: a linear warm-up, then constant or half a cosine towards zero."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _open_mixture(config: FlowFitConfig) -> Mixture:
    data = DataConfig(
        image_size=config.architecture.image_size,
        validation_fraction=config.validation_fraction,
        root=config.root,
        download=config.download,
    )
    return Mixture(config.sources, data, config.architecture.channels, seed=config.seed)


def _fresh(config: FlowFitConfig, train: Tensor, device: torch.device | str) -> _State:
    # nn layers draw their initial weights from the global generator: it is set aside and given back.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(config.seed, "flow-weights").get_state())
        flow = Flow(config.architecture)
    if config.start_from is None:
        draws = generator(config.seed, "flow-initial")
        images = random_batch(train, config.initial_images, config.augmentation, draws)
        x = dequantise(images, torch.rand(images.shape, generator=draws))
        flow.initialise_(x, generator(config.seed, "flow-rotation"))
    else:
        start = load_flow(config.start_from)
        if start.description != config.architecture:
            raise ConfigError(
                f"start_from {config.start_from} is of another architecture: {start.description}",
                "set architecture to the same",
            )
        flow.load_state_dict(start.state_dict())
    flow.to(device)
    average = copy.deepcopy(flow).requires_grad_(False)
    return _State(flow, average, torch.optim.Adam(flow.parameters(), lr=config.learning_rate, betas=(0.9, 0.99)))


def _step_(state: _State, config: FlowFitConfig, train: Tensor, device: torch.device | str) -> float:
    """One step of Adam on the mean bits per dimension of a batch, which it returns."""
    rate = learning_rate_at(config, state.step)
    draws = generator(config.seed, "flow-batch", step=state.step)
    images = random_batch(train, config.batch_size, config.augmentation, draws, blended=config.blended).to(device)
    noise = generator(config.seed, "flow-dequantisation", step=state.step, device=device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        loss = bits_per_dim(state.flow, images, noise).mean()
    value = float(loss.detach())
    state.step += 1
    if not math.isfinite(value):
        raise NonFiniteError(f"{config.name}: the loss at step {state.step} is {value}", "lower learning_rate")
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad()
    loss.backward()
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


def _held_out_bits(flow: Flow, images: Tensor, seed: int, device: torch.device | str) -> float:
    return measure(flow, images, seed=seed, device=device).mean


def _card(
    config: FlowFitConfig, mixture: Mixture, state: _State, train: Tensor, device: torch.device | str
) -> dict[str, Any]:
    """What the stored flow says of itself; the only place that reads the test splits."""
    frozen = copy.deepcopy(state.average).freeze_()
    tests = {}
    for name, images in mixture.tests().items():
        report = measure(frozen, images, seed=config.seed, device=device)
        tests[name] = {
            "images": len(images),
            "bits_per_dim": round(report.mean, 4),
            "png_bits_per_dim": round(float(report.png_bytes.double().mean()) * 8 / images[0].numel(), 4),
        }
    return {
        "name": config.name,
        "recipe": config.model_dump(mode="json", exclude={"root", "download", "output", "source", "start_from"}),
        "sources": mixture.digests,
        "train_images": len(train),
        "start": None if config.start_from is None else _start(config.start_from),
        "parameters": sum(parameter.numel() for parameter in state.flow.parameters()),
        "cpu_seconds": round(state.cpu_seconds, 1),
        "threads": torch.get_num_threads(),
        "device": torch.device(device).type,
        "torch": str(torch.__version__),
        "held_out": tests,
        "curve": [{**point, "bits_per_dim": round(point["bits_per_dim"], 4)} for point in state.curve],
    }


def _start(name_or_path: str) -> dict[str, Any]:
    card = load_card(name_or_path)
    return {key: card.get(key) for key in ("digest", "recipe", "cpu_seconds", "held_out", "curve", "start")}


def _config_digest(config: FlowFitConfig) -> str:
    """Of what decides the result; where files lie and how often they are written does not."""
    values = config.model_dump(mode="json", exclude={"root", "download", "output", "checkpoint_every", "start_from"})
    start = None if config.start_from is None else load_card(config.start_from)["digest"]
    return settings_digest({**values, "start": start})


def _tensor_groups(state: _State) -> dict[str, dict[str, Tensor]]:
    names = [name for name, _ in state.flow.named_parameters()]
    moments = [state.optimiser.state[parameter] for parameter in state.flow.parameters()]
    return {
        "flow": dict(state.flow.state_dict()),
        "average": dict(state.average.state_dict()),
        "first": {name: moment["exp_avg"] for name, moment in zip(names, moments, strict=True)},
        "second": {name: moment["exp_avg_sq"] for name, moment in zip(names, moments, strict=True)},
    }


def _store(state: _State, config: FlowFitConfig) -> None:
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in _tensor_groups(state).items()
        for name, tensor in named.items()
    }
    header = {
        "config": _config_digest(config),
        "step": state.step,
        "cpu_seconds": state.cpu_seconds,
        "curve": state.curve,
    }
    write_tensors(config.checkpoint, tensors, header)


def _restore_(state: _State, config: FlowFitConfig) -> None:
    path = config.checkpoint
    try:
        tensors, header = read_tensors(path)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} {error}", "delete it and start again") from None
    if header.get("config") != _config_digest(config):
        raise CheckpointError(f"checkpoint {path} belongs to another recipe", "delete it, or restore its settings")
    step = int(header["step"])
    for parameter in state.flow.parameters():
        state.optimiser.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    targets = {f"{group}/{name}": t for group, named in _tensor_groups(state).items() for name, t in named.items()}
    if {name: t.shape for name, t in targets.items()} != {name: t.shape for name, t in tensors.items()}:
        raise CheckpointError(f"checkpoint {path} does not hold this recipe's tensors", "delete it and start again")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    state.step, state.cpu_seconds, state.curve = step, float(header["cpu_seconds"]), list(header["curve"])
