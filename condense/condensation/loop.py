"""Condenses a dataset, from a config to images and the facts about them: THE MAIN PATH.

Every worker runs `condense` with the same config and its own context; in one process there is one worker. What a
worker holds of the data: share.py. One step that moves the images: `matching/engine.py`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from condense.condensation import provenance
from condense.condensation.bits_target import WeightSearch
from condense.condensation.build import build_budget, build_engine, build_evaluator, build_images, build_penalty
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.condensation.judging import judge, test_metrics
from condense.condensation.share import WorkerShare, load_share
from condense.condensation.validation import Snapshot, Validated, Validation
from condense.data.slices import HeldOut, load_held_out
from condense.errors import CheckpointError
from condense.flow.bits import measure
from condense.image_grid import image_grid
from condense.matching.engine import Engine, StepResult
from condense.synthetic.dataset import CondensedDataset, content_digest
from condense.synthetic.soft_labels import from_codes, label_bits
from condense.workers.checkpoints import Checkpoint, Resumable, State
from condense.workers.context import WorkerContext
from condense.workers.memory import explain_out_of_memory
from condense.workers.time_budget import TimeBudget

log = logging.getLogger(__name__)

ACCURACY, STEP, BITS = "validation/accuracy", "validation/step", "bits_per_dim"  # names of metrics


def condense(config: RunConfig, context: WorkerContext) -> CondensedDataset:
    """Returns the condensed dataset of a config, with bits, test accuracy and controls in its provenance.

    It goes on from the latest checkpoint. All workers return the same dataset. With `evaluation.test` off, the test
    split is not read, and the provenance has neither an accuracy on it nor controls.

    Args:
        config: of the run.
        context: of the worker.

    Raises:
        CondenseError: data, flow, settings, checkpoints, memory, or numbers that are not finite.
    """
    started = time.perf_counter()
    source, flow_name = open_checked(config)
    share = load_share(config, source, flow_name, context)
    synthetic = build_images(config, source, share.real, share.classes)
    engine = build_engine(
        config,
        len(share.class_names),
        share.real,
        share.normalisation,
        build_penalty(config, share.flow, share.device),
        synthetic,
        share.mesh,
    )
    evaluator = build_evaluator(config, len(share.class_names), share.normalisation)
    limit = config.evaluation.validation_images
    held_out = load_held_out(source, "validation", share.classes, share.mesh, share.device, limit=limit)
    stages = {"setting up": time.perf_counter() - started}
    budget = build_budget(config, source, started, context)
    with Validation(config, context, evaluator, held_out) as validation:
        optimisation = Optimisation(config, context, share, engine, validation, budget)
        optimisation.run()
    stages["validation"] = optimisation.evaluating_s
    stages["outer steps"] = time.perf_counter() - started - sum(stages.values())
    images, labels, soft = optimisation.images(), optimisation.labels(), optimisation.soft_labels()
    judged: dict[str, Any] = {"controls": {}}
    if config.evaluation.test:
        test = HeldOut(source, share.classes, share.mesh, share.device)
        judged = judge(config, context, share, evaluator, test, images, labels, soft)
        if context.first:
            context.tracker.metrics(test_metrics(judged), engine.schedule.total)
    stages |= judged.pop("seconds", {})
    images, labels = images.cpu(), labels.cpu()
    bits, bits_per_dim, png_bytes = provenance.cost(share.flow, images, seed=config.seed, device=share.device)
    facts = provenance.describe(
        config,
        source=source.description() | {"digest": share.source_digest},
        flow=None if share.flow is None else {"name": str(flow_name), "digest": share.flow.digest},
        normalisation=share.normalisation,
        content_digest=content_digest(images, labels, share.class_names, soft),
    )
    facts |= judged | {
        "outer_steps": engine.schedule.total,
        "ended_by": engine.schedule.why,
        "validation": validation.description(),
        "bits": {
            "per_dim_before": share.real_bits(),
            "per_dim_after": None if bits_per_dim is None else float(bits_per_dim.mean()),
            "per_set": None if bits is None else float(bits.sum()) + label_bits(soft),
            "labels_per_set": label_bits(soft),
            "png_bytes": int(png_bytes.sum()),
            "weight": engine.bits_weight,
            "attempts": None if optimisation.target is None else optimisation.target.tried,
        },
        "seconds": (seconds := time.perf_counter() - started),
        "seconds_by_stage": stages | {"bits and the rest": seconds - sum(stages.values())},
        "seconds_by_part": dict(engine.stopwatch.seconds),
    }
    taught = None if soft is None else soft.cpu()
    return CondensedDataset(images, labels, share.class_names, bits, bits_per_dim, taught, facts)


class Optimisation:
    """All outer steps of one run on one worker, with evaluations and checkpoints between them.

    With `bits_target` the steps are done several times, each time with another weight of the bits.

    Attributes:
        target: the attempts at a target of bits; None without one.
        evaluating_s: seconds that evaluations kept the steps waiting, in this process.
    """

    def __init__(
        self,
        config: RunConfig,
        context: WorkerContext,
        share: WorkerShare,
        engine: Engine,
        validation: Validation,
        budget: TimeBudget,
    ) -> None:
        self.config, self.context, self.share, self.engine = config, context, share, engine
        self.validation, self.budget, self.schedule = validation, budget, engine.schedule
        self.target = None if config.bits_target is None else WeightSearch(config.bits_target)
        self._parts: list[Resumable] = [engine, validation, self.schedule, budget]
        self._parts += [] if self.target is None else [self.target]
        self._identity, self._every, self.evaluating_s = config.identity(), config.checkpoint_every, 0.0

    def run(self) -> None:
        """Does all outer steps, from the latest checkpoint on."""
        beginning = self.engine.synthetic.copy_parameters()
        done = self._restore()
        while True:
            self._attempt(done)
            if self._is_last_attempt():
                break
            self.engine.start_again_(beginning)
            done = 0
        started = time.perf_counter()
        self._record(self.validation.finish(), self.schedule.total)
        self.evaluating_s += time.perf_counter() - started

    def images(self) -> Tensor:
        """Returns the whole set, uint8 (N, C, H, W), classes in order. All workers call it."""
        return self.share.whole(self.engine.synthetic.images_uint8())

    def labels(self) -> Tensor:
        """Returns the classes that the images are made for, int64 (N,)."""
        return self.share.whole(self.engine.synthetic.labels)

    def soft_labels(self) -> Tensor | None:
        """Returns float32 (N, classes), as they are evaluated and written; None where labels are hard."""
        codes = self.engine.synthetic.label_codes()
        return None if codes is None else from_codes(self.share.whole(codes))

    @property
    def attempted(self) -> int:
        """Outer steps of earlier attempts at the target of bits."""
        return 0 if self.target is None else len(self.target.tried) * self.config.outer_steps

    def _attempt(self, done: int) -> None:
        """All outer steps after the first `done`, with one weight of the bits."""
        if self.target is not None:
            self.engine.bits_weight = self.target.weight
        while done < self.schedule.total:
            with explain_out_of_memory(self.engine.under_way), self.budget.time_step():
                result = self.engine.outer_step(done)
            done += 1
            left = self.budget.left()
            if left is not None:
                self.schedule.use_time_(done, *left)
            total = self.schedule.total
            self.context.report("condensing", done, total, _metrics(result))
            self._record(self.validation.arrived(), done)
            if self.budget.evaluation_due(done, total):
                with self.budget.time_evaluation():
                    self._evaluate(done, result)
            if done % (self._every or max(1, self.schedule.total // 20)) == 0 or done == self.schedule.total:
                self._save(done, result)

    def _is_last_attempt(self) -> bool:
        """Returns whether the images are the result: there is no target, or the attempt that ended is the last."""
        if self.target is None or self.share.flow is None:
            return True
        bits = measure(self.share.flow, self.images().cpu(), seed=self.config.seed, device=self.share.device).mean
        self.target.tried.append((self.engine.bits_weight, bits))
        number, tried = len(self.target.tried), self.target.tried[-1]
        log.info("attempt %d at %g bits per dim: weight %.4g gave %.4f", number, self.target.target, *tried)
        return self.target.over

    def _evaluate(self, done: int, result: StepResult) -> None:
        started = time.perf_counter()
        snapshot = self._snapshot(done, result)
        if self.context.first:
            grid = image_grid(snapshot.images.cpu(), images_per_class=self.config.images_per_class)
            self.context.tracker.images("synthetic", grid, snapshot.step)
        self._record(self.validation.evaluate(snapshot), done)
        self.evaluating_s += time.perf_counter() - started

    def _snapshot(self, done: int, result: StepResult) -> Snapshot:
        """Returns the set after `done` outer steps, and what is recorded of it."""
        images, soft = self.images(), self.soft_labels()
        values = _metrics(result)
        bits = self.share.mean_bits(self.engine.synthetic.images_uint8())
        if bits is not None:
            values[BITS] = bits
        values |= {f"seconds/{part}": spent for part, spent in self.engine.stopwatch.seconds.items()}
        if self.target is not None:
            values["bits_weight"] = self.engine.bits_weight
        return Snapshot(self.attempted + done, done, images, self.labels() if soft is None else soft, values)

    def _record(self, found: Iterable[Validated], done: int) -> None:
        """Tells the schedule, the tracker and the person what evaluations have found, after `done` outer steps."""
        for validated in found:
            snapshot, accuracy = validated.snapshot, validated.evaluation.mean
            self.schedule.follow_(snapshot.done, accuracy, snapshot.values.get(BITS))
            if not self.context.first:
                continue
            values = {ACCURACY: accuracy} | snapshot.values
            self.context.tracker.metrics(values, snapshot.step)
            stage = "condensing"
            if self.validation.beside:
                values = {ACCURACY: accuracy, STEP: snapshot.done} | _only(snapshot.values, BITS)
                stage += ", evaluated in the way" if self.validation.process_ended else ""
            self.context.report(stage, done, self.schedule.total, values, milestone=True)

    def _save(self, done: int, result: StepResult) -> None:
        state = State()
        for part in self._parts:
            state |= part.state()
        step = self.attempted + done
        checkpoint = Checkpoint(step, self._identity, state.tensors, state.scalars)
        metrics = {"step": step, **_metrics(result)}
        self.context.checkpoints.save(checkpoint if self.context.first else None, metrics)

    def _restore(self) -> int:
        """Takes over the latest checkpoint, and returns the outer steps of the attempt that are done."""
        checkpoint = self.context.checkpoints.latest()
        if checkpoint is None:
            return 0
        if checkpoint.identity != self._identity:
            raise CheckpointError(
                f"the stored checkpoint belongs to run {checkpoint.identity}, this is {self._identity}",
                "a changed config starts a new run: set storage to another folder",
            )
        for part in self._parts:
            part.restore_(checkpoint)
        done = checkpoint.step - self.attempted
        self.context.going_on("condensing", done, self.schedule.total)
        return done


def _metrics(result: StepResult) -> dict[str, float]:
    values = {"distance": result.distance}
    if not math.isnan(result.bits_per_dim):
        values["training_bits_per_dim"] = result.bits_per_dim
    return values


def _only(values: dict[str, float], name: str) -> dict[str, float]:
    return {name: values[name]} if name in values else {}
