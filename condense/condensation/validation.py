"""How a run is followed: validation accuracy, bits and a picture of the set after some of its outer steps.

In the way of training all workers share the evaluation's learners, and go on when it is done. Beside it
(`evaluation.beside`) the first worker hands the set to a process of its own and all go on at once; what that finds is
told at a later step, for the step that it belongs to. A checkpoint has the sets whose evaluations are not done, so that
a resumed run makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from condense.condensation.config import RunConfig
from condense.errors import CondenseError
from condense.image_grid import image_grid
from condense.learners.evaluation import Evaluation, Evaluator
from condense.learners.evaluation_process import AT_ONCE, EvaluationProcess
from condense.matching.schedule import Schedule
from condense.synthetic.decoder import decode_set
from condense.workers.capacity import TESTING, explain_out_of_memory
from condense.workers.checkpoints import Checkpoint
from condense.workers.collective import raise_together
from condense.workers.context import WorkerContext

T = TypeVar("T")

ACCURACY, STEP, BITS = "validation/accuracy", "validation/step", "bits_per_dim"  # names of what is told
FOUND = ("accuracy_mean", "accuracy_std")
_FOUND, _WAITING = "validation.", "waiting."


@dataclass(frozen=True)
class Snapshot:
    """The whole set after an outer step.

    Attributes:
        step: as it is recorded, earlier attempts at a target of bits counted in.
        done: outer steps of this attempt.
        images: canvases, uint8 (N, C, H, W), classes in order.
        labels: int64 (N,), or soft labels, float32 (N, classes).
        values: what else is recorded of it.
    """

    step: int
    done: int
    images: Tensor
    labels: Tensor
    values: dict[str, float]


class Following:
    """One run's, on one worker; as a context, so that no process outlives the run.

    Attributes:
        validation: mean and deviation of the latest accuracy over its learners; beside training, of the first worker
            alone until `finish`.
    """

    def __init__(
        self,
        config: RunConfig,
        context: WorkerContext,
        evaluator: Evaluator,
        schedule: Schedule,
        held_out: tuple[Tensor, Tensor],
    ) -> None:
        """held_out: validation images to test on, uint8 (M, C, H, W), and their labels (M,)."""
        self.config, self.context, self.evaluator, self.schedule = config, context, evaluator, schedule
        self.held_out, self.learners = held_out, config.evaluation.validation_learners
        self.validation: dict[str, float] = {}
        self._waiting: dict[int, Snapshot] = {}
        self._beside: EvaluationProcess | None = None

    def __enter__(self) -> Following:
        if self.config.evaluation.beside and self._first:
            self._beside = EvaluationProcess(self.evaluator, self.learners, self.held_out, self.context.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beside is not None:
            self._beside.close()

    def follow(self, snapshot: Snapshot) -> None:
        """Evaluates the set, or sees to it. All workers call it after the same steps.

        Raises:
            CondenseError: on all workers, where an evaluation beside training failed.
        """
        if self._first:
            grid = image_grid(snapshot.images.cpu(), images_per_class=self.config.images_per_class)
            self.context.tracker.images("synthetic", grid, snapshot.step)
        self._evaluate(snapshot)
        if self.config.evaluation.beside:
            self._wait(snapshot.done, AT_ONCE)

    def tell_arrived(self, done: int) -> None:
        """After `done` outer steps: tells what has been found since; does not wait."""
        if self._beside is not None:
            for step, evaluation in self._beside.arrived():
                self._tell(self._waiting.pop(step), evaluation, done)

    def finish(self, done: int) -> None:
        """Waits for all evaluations; then all workers have the same `validation`. All of them call it.

        Raises:
            CondenseError: as `follow`.
        """
        if not self.config.evaluation.beside:
            return
        self._wait(done, 0)
        found = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        if self._first:
            found += torch.tensor([self.validation[name] for name in FOUND], dtype=torch.float64)
        self.validation = dict(zip(FOUND, self.context.collective.sum_(found).tolist(), strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """For a checkpoint, tensors by class and numbers: what was found last, and the sets whose evaluations lack."""
        tensors: dict[str, Tensor] = {}
        scalars = {_FOUND + name: value for name, value in self.validation.items()}
        for step, snapshot in self._waiting.items():
            name, by_class = f"{_WAITING}{step}.", (-1, self.config.images_per_class)
            tensors[name + "images"] = snapshot.images.unflatten(0, by_class)
            tensors[name + "labels"] = snapshot.labels.unflatten(0, by_class).clone()  # hard ones are every set's
            scalars |= {name + key: value for key, value in ({"done": snapshot.done} | snapshot.values).items()}
        return tensors, scalars

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over what `state` gave, and sees to the evaluations that it lacks. All workers call it."""
        self.validation = _below(_FOUND, checkpoint.scalars)
        for step in sorted({int(name.split(".")[1]) for name in checkpoint.tensors if name.startswith(_WAITING)}):
            parts = _below(f"{_WAITING}{step}.", checkpoint.tensors)
            images, labels = (parts[name].flatten(0, 1).to(self.context.device) for name in ("images", "labels"))
            values = _below(f"{_WAITING}{step}.", checkpoint.scalars)
            self._evaluate(Snapshot(step, int(values.pop("done")), images, labels, values))

    @property
    def _first(self) -> bool:
        return self.context.collective.rank == 0

    def _evaluate(self, snapshot: Snapshot) -> None:
        images, labels = decode_set(snapshot.images, snapshot.labels, self.config.images.factor)
        if self._beside is not None:
            self._waiting[snapshot.step] = snapshot
            self._beside.ask(snapshot.step, images, labels)
        elif not self.config.evaluation.beside:
            with explain_out_of_memory(lambda: TESTING):
                evaluation = self.evaluator.evaluate(
                    images, labels, [self.held_out], learners=self.learners, collective=self.context.collective
                )
            self._tell(snapshot, evaluation, snapshot.done)

    def _wait(self, done: int, left: int) -> None:
        """Until at most `left` evaluations are not done; what fails on the first worker is raised by all."""
        failure = None
        try:
            if self._beside is not None:
                for step, evaluation in self._beside.waited(left):
                    self._tell(self._waiting.pop(step), evaluation, done)
        except CondenseError as error:
            failure = error
        raise_together(self.context.collective, failure, self.context.device)

    def _tell(self, snapshot: Snapshot, evaluation: Evaluation, done: int) -> None:
        """After `done` outer steps: what was found of the set after some of them."""
        self.validation = dict(zip(FOUND, (evaluation.mean, evaluation.std), strict=True))
        self.schedule.follow_(snapshot.done, evaluation.mean, snapshot.values.get(BITS))
        if not self._first:
            return
        values = {ACCURACY: evaluation.mean} | snapshot.values
        self.context.tracker.metrics(values, snapshot.step)
        stage = "condensing"
        if self._beside is not None:
            values = {ACCURACY: evaluation.mean, STEP: snapshot.done} | {
                name: value for name, value in snapshot.values.items() if name == BITS
            }
            stage += ", evaluated in the way" if self._beside.ended else ""
        self.context.tell(stage, done, self.schedule.total, values)


def _below(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """Those whose name begins so, by the rest of it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
