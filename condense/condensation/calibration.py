"""Measures what the parts of a run cost on this machine, in a process of its own: for `condense estimate`.

A worker's slice is built from a few real images of the source, repeated. Then real outer steps, real epochs of fresh
networks and the flow's measurements are timed, and the process's peak memory is read.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from condense.condensation.build import build_engine, build_evaluator, build_images, build_penalty
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.data.normalisation import normalisation_of
from condense.errors import CondenseError
from condense.flow.bits import measure
from condense.flow.pinning import open_flow
from condense.learners.evaluation import Evaluator
from condense.matching.batches import CANDIDATES, EVERY
from condense.matching.config import MatchingConfig
from condense.matching.engine import Engine
from condense.settings import validate
from condense.synthetic.decoder import decode_uint8
from condense.workers import checkpoints
from condense.workers.checkpoints import Checkpoint
from condense.workers.collective import Alone
from condense.workers.devices import local_device
from condense.workers.estimate import MIB, measure_alone
from condense.workers.memory import keep_freed_memory
from condense.workers.mesh import build_mesh

SAMPLE = 256  # real images that are decoded to know what one costs
ENOUGH_S = 2.0  # of repeated steps behind a mean
EPOCHS = 2  # of the network on the synthetic set between the two match steps that are timed


@dataclass(frozen=True)
class Costs:
    """Measured in one process that holds a slice of `classes` classes.

    Seconds: `imports` until the process is ready; `opening` the source; `reading` one image; `building` flow, images
    and networks; `outer_step` with `threads`, and `outer_step_other` with the other count of threads that this machine
    offers (the same where there is one); `learner` and `epoch` of one evaluation learner, fixed and for each epoch;
    `tested` one image by one learner; `bits` of one image. Memory in MiB: `imported` before anything was loaded,
    `peak` of all that was measured, of which `images` were real images, and `device` the peak on a GPU. `checkpoint`:
    bytes of the slice's. `replicas`: networks of the outer step, one after another; `once`: those of its seconds that
    do not grow with them.
    """

    classes: int
    replicas: int
    threads: int
    imports: float
    opening: float
    reading: float
    building: float
    outer_step: float
    outer_step_other: float
    once: float
    learner: float
    epoch: float
    tested: float
    bits: float
    imported: float
    peak: float
    images: float
    device: float
    checkpoint: int

    def in_words(self) -> str:
        """Returns what was measured, as a sentence for a person."""
        return (
            f"Measured here on {self.classes} classes with {self.threads} threads: an outer step"
            f" {self.outer_step:.3g} s, an evaluation learner {1000 * self.epoch:.3g} ms an epoch, the bits of an image"
            f" {1000 * self.bits:.3g} ms"
        )


def calibrate(config: RunConfig, classes: int, threads: int, learners: int) -> Costs:
    """Measures the `Costs` of a config for a slice of so many classes, with so many threads, in a fresh process.

    Args:
        config: `replicas` are those of one worker.
        learners: evaluation learners that one worker trains together.

    Raises:
        CapacityError: even the calibration needs more memory than there is.
        CondenseError: what a run of this config would raise before its first step.
    """
    given = {"config": config.as_dict(), "classes": classes, "threads": threads, "learners": learners}
    found = measure_alone("condense.condensation.calibration", given)
    return Costs(**found)


def measure_costs(config: RunConfig, classes: int, threads: int, learners: int, imports: float) -> Costs:
    """Measures what `calibrate` returns, in this process. `imports`: seconds until it was ready."""
    imported = _peak_mib()
    keep_freed_memory()
    torch.set_num_threads(threads)
    device = local_device(config.gpus_per_worker)
    now = time.perf_counter
    started = now()
    source, flow_name = open_checked(config)
    opening = now() - started
    count = len(source.class_names)

    started = now()
    sample = next(iter(source.pieces("train", SAMPLE))).images
    normalisation = normalisation_of([sample], Alone())
    reading = (now() - started) / len(sample)

    started = now()
    need = _images_needed(config)
    sizes = [min(size, need) for size in source.class_counts[:classes]]
    real = [sample.repeat(-(-size // len(sample)), 1, 1, 1)[:size].to(device) for size in sizes]
    density = None if flow_name is None else open_flow(config, flow_name, device=device)
    penalty = build_penalty(config, density, device)
    synthetic = build_images(config, source, real, range(classes))
    building = now() - started

    built: list[Engine] = []
    mesh = build_mesh(Alone(), config.replicas)

    def engine(matching: MatchingConfig) -> Engine:
        changed = config.model_copy(update={"matching": matching})
        built.append(build_engine(changed, count, real, normalisation, penalty, synthetic, mesh))
        return built[-1]

    outer_step, once = _outer_step(config, engine)
    other = next((n for n in (1, os.cpu_count() or 1) if n != threads), threads)
    outer_step_other = outer_step
    if other != threads and device.type == "cpu":
        torch.set_num_threads(other)
        outer_step_other, _ = _outer_step(config, engine)
        torch.set_num_threads(threads)

    rows = synthetic.images_uint8()[torch.arange(count, device=device) % classes].flatten(0, 1)
    labels = torch.arange(count, device=device).repeat_interleave(config.images_per_class * config.images.factor**2)
    evaluator = build_evaluator(config, count, normalisation)
    fixed, epoch, tested = _learners(evaluator, decode_uint8(rows, config.images.factor), labels, sample, learners)
    bits = 0.0
    if density is not None:
        measured = sample[:50]
        measure(density, measured[:2], seed=0, device=device)
        bits = _seconds(lambda: measure(density, measured, seed=0, device=device)) / len(measured)
    state = built[-1].state()
    return Costs(
        classes=classes,
        replicas=config.replicas,
        threads=threads,
        imports=imports,
        opening=opening,
        reading=reading,
        building=building,
        outer_step=outer_step,
        outer_step_other=outer_step_other,
        once=once,
        learner=fixed,
        epoch=epoch,
        tested=tested,
        bits=bits,
        imported=imported,
        peak=_peak_mib(),
        images=sum(images.numel() for images in real) / MIB,
        device=torch.cuda.max_memory_reserved(device) / MIB if device.type == "cuda" else 0.0,
        checkpoint=len(checkpoints.pack(Checkpoint(0, config.identity(), state.tensors, state.scalars))),
    )


def _images_needed(config: RunConfig) -> int:
    """Real images of a class that a step, or the start of the images, can tell from having all."""
    if config.images.init == "kmeans":
        return 1 << 62
    batch = config.matching.real_batch * (CANDIDATES if config.matching.real_batch_choice == "representative" else 1)
    return max(batch, config.images_per_class * config.images.factor**2)


def _outer_step(config: RunConfig, engine: Callable[[MatchingConfig], Engine]) -> tuple[float, float]:
    """Seconds of an outer step of the config's schedule, measured or from one with two match steps, and those of them
    that do not grow with the replicas."""
    matching = config.matching
    whole = engine(matching)
    steps, epochs = whole.match_steps, whole.inner_epochs
    if steps == 1:
        _, parts = _parts(whole)
        return sum(parts.values()), _once(parts)
    shorter = min(epochs, EPOCHS)
    synthetic = matching.learner_training == "synthetic"
    update = {"steps": 2, **({"inner_epochs": shorter} if synthetic else {})}
    first, parts = _parts(engine(matching.model_copy(update=update)))
    training = parts.pop("network training")
    matched, once = sum(parts.values()) * steps / 2, _once(parts) * steps / 2
    if matching.real_batch_choice == "representative":  # the first of the timed steps chose for the others too
        matched += (first["real gradients"] - parts["real gradients"]) * steps / EVERY
    if matching.learner_training == "pool":
        return matched + training * steps / 2, once
    return matched + training * (steps - 1) * (epochs / shorter if synthetic and shorter else 1), once


def _once(parts: dict[str, float]) -> float:
    """Of the seconds by part, those of what is done once for all replicas."""
    return sum(parts.get(name, 0.0) for name in ("bits", "image update", "communication"))


def _parts(engine: Engine) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by part of the first outer step, and the mean of later ones."""
    engine.outer_step(0)
    first = dict(engine.stopwatch.seconds)
    engine.stopwatch.seconds.clear()
    done, started = 0, time.perf_counter()
    while not done or time.perf_counter() - started < ENOUGH_S:
        done += 1
        engine.outer_step(done)
    return first, {part: seconds / done for part, seconds in engine.stopwatch.seconds.items()}


def _learners(
    evaluator: Evaluator, images: Tensor, labels: Tensor, sample: Tensor, learners: int
) -> tuple[float, float, float]:
    """Seconds of one learner: fixed, for each epoch, for each image that it is tested on."""

    def seconds(epochs: int, tested: int) -> float:
        held_out = [(sample[:tested], torch.zeros(tested, dtype=torch.int64))]
        quick = replace(evaluator, recipe=replace(evaluator.recipe, epochs=epochs))
        return _seconds(lambda: quick.evaluate(images, labels, held_out, learners=learners, collective=Alone()))

    seconds(1, len(sample))
    fixed = seconds(0, 1)
    one = max(seconds(1, 1) - fixed, 1e-4)
    many = min(100, max(2, math.ceil(ENOUGH_S / 2 / one)))
    epoch = (seconds(many, 1) - fixed) / many
    tested = (seconds(0, len(sample)) - fixed) / len(sample)
    return fixed / learners, epoch / learners, max(tested, 0.0) / learners


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _peak_mib() -> float:
    """Returns the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def main() -> None:
    """Prints the costs as one line of JSON."""
    given = json.loads(sys.argv[1])
    imports = time.time() - given["started"]
    try:
        config = validate(RunConfig, given["config"], where="the config")
        found = asdict(measure_costs(config, given["classes"], given["threads"], given["learners"], imports))
    except CondenseError as error:
        found = {"problem": error.problem, "remedy": error.remedy}
    except torch.OutOfMemoryError as error:
        found = {"problem": str(error).splitlines()[0], "remedy": "lower matching.real_batch or network.width"}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
