"""From a config to a condensed dataset: THE MAIN PATH.

Every worker runs `condense` with the same config and its own place in the collective; in one process there is one.
A worker owns a slice of the classes: their real images, their synthetic images, their controls; with network replicas
several workers may hold the same slice, and the same images of it. What all need (the validation and test splits, the
set to evaluate) is small and is held or gathered by all.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch
from torch import Tensor

from condense.condensation import provenance
from condense.condensation.bits_target import WeightSearch
from condense.condensation.build import build_engine, build_evaluator, build_images, build_penalty
from condense.condensation.config import RunConfig
from condense.condensation.pinning import open_flow
from condense.condensation.time_budget import TimeBudget
from condense.condensation.validation import BITS, Following, Snapshot
from condense.condensation.warm_start import starting_images
from condense.data.normalisation import normalisation_of
from condense.data.slices import HeldOut, load_held_out, load_slice, source_digest
from condense.data.sources import DataSource, open_source
from condense.data.splits import check_class_sizes
from condense.errors import CheckpointError, FlowError
from condense.flow.bits import Density, measure
from condense.flow.store import flow_for
from condense.learners.evaluation import Evaluation
from condense.learners.networks import build_network
from condense.matching.config import check_matching
from condense.matching.engine import Engine, StepResult
from condense.matching.engine_state import gather_state, restore_state_
from condense.synthetic import controls
from condense.synthetic.dataset import CondensedDataset, content_digest
from condense.synthetic.decoder import check_factor, decode_set
from condense.synthetic.soft_labels import check_labels, from_codes, label_bits
from condense.workers.capacity import TESTING, explain_out_of_memory
from condense.workers.checkpoints import Checkpoint
from condense.workers.context import WorkerContext
from condense.workers.devices import local_device
from condense.workers.mesh import build_mesh, check_mesh, class_slice

log = logging.getLogger(__name__)

REAL_BITS_IMAGES = 500  # real images behind "bits per dim before": their mean is known to about 1 %


def open_checked(config: RunConfig) -> tuple[DataSource, str | None]:
    """The source and the name of the flow, after every check that needs no work: to be called before a run starts.

    Raises:
        SourceError: the data, or a class smaller than images_per_class.
        ConfigError: settings that exclude each other, or do not fit the images' size.
        FlowError: no flow fits, or one of another shape; None is returned where no bits are asked for.
    """
    source = open_source(config.source, config.data, seed=config.seed)
    if config.workers == 0:
        local_device(config.gpus_per_worker)
    elif config.workers != "auto":
        check_mesh(len(source.class_names), config.workers, config.replicas, config.max_workers)
    check_matching(config.objective, config.matching)
    check_labels(config.images.labels, config.objective)
    check_factor(config.images.factor, source.shape)
    check_class_sizes(source.class_counts, config.images_per_class, source.class_names)
    starting_images(config, source)
    build_network(config.network, source.shape, len(source.class_names))
    if config.flow != "auto":
        flow = open_flow(config, config.flow)
        if flow.shape != source.shape:
            raise FlowError(
                f"flow {config.flow} measures images of shape {flow.shape}, {config.source} has {source.shape}",
                "set data.image_size to the flow's, choose another flow, or fit one with `condense flow fit`",
            )
        return source, config.flow
    try:
        return source, flow_for(source.shape)
    except FlowError:
        if config.bits_weight > 0 or config.bits_target is not None:
            raise
        return source, None


def condense(config: RunConfig, context: WorkerContext) -> CondensedDataset:
    """The condensed dataset of a config, with bits, test accuracy and controls in its provenance.

    Resumes from the latest checkpoint. All workers return the same dataset. With `evaluation.test` off the test split
    is not read, and there are neither accuracy on it nor controls.

    Raises:
        CondenseError: see the parts.
    """
    started = time.perf_counter()
    source, flow_name = open_checked(config)
    mesh, device = build_mesh(context.collective, config.replicas), context.device
    slices = mesh.over_slices
    classes = class_slice(len(source.class_names), slices.rank, slices.size)
    real = load_slice(source, classes, mesh.everyone, device)
    digest = source_digest(real, classes, source.class_names, slices, device)
    real = [images.to(device) for images in real]
    normalisation = normalisation_of(real, slices)
    density = None if flow_name is None else open_flow(config, flow_name, device=device)
    penalty = build_penalty(config, density, device)
    synthetic = build_images(config, source, real, classes)
    engine = build_engine(config, len(source.class_names), real, normalisation, penalty, synthetic, mesh)
    evaluator = build_evaluator(config, len(source.class_names), normalisation)
    pace = TimeBudget(config, source, started, mesh.everyone, device)
    limit = config.evaluation.validation_images
    validation = load_held_out(source, "validation", classes, mesh, device, limit=limit)
    with Following(config, context, evaluator, engine.schedule, validation) as following:
        run = _Run(config, context, engine, following, density, real, classes, pace)
        run.optimise()
    images = run.whole(engine.synthetic.images_uint8())
    labels, soft = run.whole(engine.synthetic.labels), run.soft_labels()
    found = (
        run.judge(images, labels, soft, HeldOut(source, classes, mesh, device))
        if config.evaluation.test
        else {"controls": {}}
    )
    bits, bits_per_dim, png_bytes = provenance.cost(density, images.cpu(), seed=config.seed, device=device)
    facts = provenance.describe(
        config,
        source=source.description() | {"digest": digest},
        flow=None if flow_name is None or density is None else {"name": flow_name, "digest": density.digest},
        normalisation=normalisation,
        content_digest=content_digest(images.cpu(), labels.cpu(), source.class_names, soft),
    )
    facts |= found | {
        "outer_steps": engine.schedule.total,
        "ended_by": engine.schedule.why,
        "validation": following.validation,
        "bits": {
            "per_dim_before": run.real_bits(),
            "per_dim_after": None if bits_per_dim is None else float(bits_per_dim.mean()),
            "per_set": None if bits is None else float(bits.sum()) + label_bits(soft),
            "labels_per_set": label_bits(soft),
            "png_bytes": int(png_bytes.sum()),
            "weight": engine.bits_weight,
            "attempts": None if run.target is None else run.target.tried,
        },
        "seconds": time.perf_counter() - started,
        "seconds_by_part": dict(engine.stopwatch.seconds),
    }
    taught = None if soft is None else soft.cpu()
    return CondensedDataset(images.cpu(), labels.cpu(), source.class_names, bits, bits_per_dim, taught, facts)


class _Run:
    """The stages of one run on one worker."""

    def __init__(
        self,
        config: RunConfig,
        context: WorkerContext,
        engine: Engine,
        following: Following,
        density: Density | None,
        real: list[Tensor],
        classes: range,
        pace: TimeBudget,
    ) -> None:
        self.config, self.context, self.engine, self.following = config, context, engine, following
        self.density, self.real, self.classes = density, real, classes
        self.mesh, self.first = engine.mesh, context.collective.rank == 0
        self.target = None if config.bits_target is None else WeightSearch(config.bits_target)
        self.attempted = 0  # outer steps of earlier attempts at the target
        self.schedule, self.pace = engine.schedule, pace

    def optimise(self) -> None:
        """All outer steps from the latest checkpoint on, with evaluations and checkpoints between them."""
        config, schedule = self.config, self.schedule
        beginning = [parameter.detach().clone() for parameter in self.engine.synthetic.parameters]
        step = self._restore()
        while True:
            if self.target is not None:
                self.engine.bits_weight = self.target.weight
            while step < schedule.total:
                with explain_out_of_memory(lambda: self.engine.stopwatch.running), self.pace.time_step():
                    result = self.engine.outer_step(step)
                step += 1
                self.pace.set_end_(schedule, step)
                self.context.tell("condensing", step, schedule.total, _numbers(result))
                self.following.tell_arrived(step)
                if self.pace.evaluation_due(schedule, step):
                    with self.pace.time_evaluation():
                        self.following.follow(self._snapshot(step, result))
                keep_every = config.checkpoint_every or max(1, schedule.total // 20)
                if step % keep_every == 0 or step == schedule.total:
                    self._save(step, result)
            if self._arrived():
                self.following.finish(step)
                return
            for parameter, start in zip(self.engine.synthetic.parameters, beginning, strict=True):
                with torch.no_grad():
                    parameter.copy_(start)
            self.engine.synthetic.averaged = 0
            self.engine.optimizer.state.clear()
            step = 0

    def _arrived(self) -> bool:
        """Whether the images are the result: there is no target, or the attempt that ended is the last."""
        if self.target is None or self.density is None:
            return True
        images = self.whole(self.engine.synthetic.images_uint8()).cpu()
        bits = measure(self.density, images, seed=self.config.seed, device=self.context.device).mean
        self.target.tried.append((self.engine.bits_weight, bits))
        self.attempted += self.config.outer_steps
        number = len(self.target.tried)
        log.info(
            "attempt %d at %g bits per dim: weight %.4g gave %.4f", number, self.target.target, *self.target.tried[-1]
        )
        return self.target.over

    def whole(self, part: Tensor) -> Tensor:
        """Per-class rows (C, ipc, ...) of the slice to the whole set's (N, ...), classes in order."""
        return self.mesh.over_slices.gather(part.contiguous()).flatten(0, 1)

    def soft_labels(self) -> Tensor | None:
        """Of the whole set, float32 (N, classes), as they are evaluated and written; None where labels are hard."""
        codes = self.engine.synthetic.label_codes()
        return None if codes is None else from_codes(self.whole(codes))

    def judge(self, images: Tensor, labels: Tensor, soft: Tensor | None, test: HeldOut) -> dict[str, Any]:
        """The one look at the test split: the set, and the controls beside it, whose labels are hard."""
        config, seed, ipc = self.config, self.config.seed, self.config.images_per_class
        after = self._mean_bits(images.view(-1, ipc, *images.shape[1:])[self.classes.start : self.classes.stop])
        sets: dict[str, Tensor] = {}
        if config.evaluation.controls:
            random = controls.random_real(self.real, self.classes, ipc, seed=seed)
            sets["random_real"] = random
            sets["kmeans_real"] = controls.kmeans_real(self.real, self.classes, ipc, seed=seed)
            if after is not None:
                sets["jpeg_real"], quality = controls.jpeg_at_bits(
                    random, after, lambda part: self._mean_bits(part) or 0.0
                )
        trained_on = decode_set(images, labels if soft is None else soft, config.images.factor)
        evaluation = self._test(*trained_on, test, "set", 0, 1 + len(sets))
        found: dict[str, Any] = {"evaluation": evaluation.description(), "controls": {}}
        for index, (name, part) in enumerate(sets.items()):
            control = self._test(self.whole(part), labels, test, name, index + 1, 1 + len(sets))
            found["controls"][name] = {
                "accuracy_mean": control.mean,
                "accuracy_std": control.std,
                "bits_per_dim": self._mean_bits(part),
            }
        if "jpeg_real" in sets:
            found["controls"]["jpeg_real"]["quality"] = quality
        if self.first:
            final = {"test/accuracy": evaluation.mean, "test/accuracy_std": evaluation.std}
            final |= {f"test/{name}": control["accuracy_mean"] for name, control in found["controls"].items()}
            self.context.tracker.metrics(final, self.schedule.total)
        return found

    def real_bits(self) -> float | None:
        """Mean bits per dim of some real images of every class; None without a flow."""
        per_class = max(1, REAL_BITS_IMAGES // self.following.evaluator.classes)
        count = min(per_class, *(len(images) for images in self.real))
        return self._mean_bits(controls.random_real(self.real, self.classes, count, seed=self.config.seed))

    def _test(self, images: Tensor, labels: Tensor, test: HeldOut, name: str, index: int, total: int) -> Evaluation:
        learners, everyone = self.config.evaluation.learners, self.mesh.everyone
        self.context.tell(f"testing {name}", index, total, {})
        with explain_out_of_memory(lambda: TESTING):
            evaluation = self.following.evaluator.evaluate(images, labels, test, learners=learners, collective=everyone)
        self.context.tell(f"tested {name}", index + 1, total, {"accuracy": evaluation.mean})
        return evaluation

    def _mean_bits(self, part: Tensor) -> float | None:
        """Mean bits per dim over all slices of slice images (C, n, channels, H, W); None without a flow."""
        if self.density is None:
            return None
        report = measure(self.density, part.flatten(0, 1).cpu(), seed=self.config.seed, device=self.context.device)
        sums = torch.tensor([float(report.bits_per_dim.sum()), len(report.bits_per_dim)], device=self.context.device)
        # Over everyone, so that all have the same number: the workers of a slice add it to both sums equally often.
        total, count = self.mesh.everyone.sum_(sums).tolist()
        return float(total / count)

    def _snapshot(self, done: int, result: StepResult) -> Snapshot:
        """The set after `done` outer steps, and what is recorded of it."""
        images, soft = self.whole(self.engine.synthetic.images_uint8()), self.soft_labels()
        labels = self.whole(self.engine.synthetic.labels) if soft is None else soft
        values = _numbers(result)
        bits = self._mean_bits(self.engine.synthetic.images_uint8())
        if bits is not None:
            values[BITS] = bits
        values |= {f"seconds/{part}": spent for part, spent in self.engine.stopwatch.seconds.items()}
        if self.target is not None:
            values["bits_weight"] = self.engine.bits_weight
        return Snapshot(self.attempted + done, done, images, labels, values)

    def _save(self, done: int, result: StepResult) -> None:
        gathered, scalars = gather_state(self.engine, self.mesh.over_slices)
        identity = self.config.identity()
        waiting, found = self.following.state()
        gathered, scalars = gathered | waiting, scalars | found
        scalars |= self.schedule.scalars() | self.pace.scalars()
        scalars |= {} if self.target is None else self.target.scalars()
        at = self.attempted + done
        checkpoint = Checkpoint(at, identity, gathered, scalars)
        self.context.checkpoints.save(checkpoint if self.first else None, {"step": at, **_numbers(result)})

    def _restore(self) -> int:
        """The next outer step of the attempt: 0, or that of the latest checkpoint, whose state is taken over."""
        checkpoint = self.context.checkpoints.latest()
        if checkpoint is None:
            return 0
        if checkpoint.identity != self.config.identity():
            raise CheckpointError(
                f"the stored checkpoint belongs to run {checkpoint.identity}, this is {self.config.identity()}",
                "a changed config starts a new run: set storage to another folder",
            )
        restore_state_(self.engine, checkpoint, slice(self.classes.start, self.classes.stop))
        self.schedule.restore_(checkpoint.scalars)
        self.pace.restore_(checkpoint.scalars)
        if self.target is not None:
            self.target.restore(checkpoint.scalars)
            self.attempted = len(self.target.tried) * self.config.outer_steps
        self.following.restore_(checkpoint)
        log.info("resuming at outer step %d", checkpoint.step)
        return checkpoint.step - self.attempted


def _numbers(result: StepResult) -> dict[str, float]:
    values = {"distance": result.distance}
    if not math.isnan(result.bits_per_dim):
        values["training_bits_per_dim"] = result.bits_per_dim
    return values
