"""Evaluates the set on validation images after some of the outer steps, in the way of training or beside it.

In the way of training, all workers share the evaluation's learners and go on when it is done. Beside it
(`evaluation.beside`), the first worker hands the set to a process of its own and all workers go on at once. What that
process finds is returned at a later step, with the step that it belongs to. A checkpoint has the sets whose evaluations
are not done yet, so that a resumed run makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from condense.condensation.config import RunConfig
from condense.errors import CondenseError
from condense.learners.evaluation import TESTING, Evaluation, Evaluator
from condense.learners.evaluation_process import AT_ONCE, EvaluationProcess
from condense.synthetic.decoder import decode_set
from condense.workers.checkpoints import Checkpoint, State
from condense.workers.collective import raise_together
from condense.workers.context import WorkerContext
from condense.workers.memory import explain_out_of_memory

T = TypeVar("T")

MEAN, STD = "accuracy_mean", "accuracy_std"
_LATEST, _WAITING = "validation.", "waiting."


@dataclass(frozen=True)
class Snapshot:
    """The whole set after an outer step.

    Attributes:
        step: as it is recorded, with the steps of earlier attempts at a target of bits.
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


@dataclass(frozen=True)
class Validated:
    """A snapshot and the accuracies that its evaluation found."""

    snapshot: Snapshot
    evaluation: Evaluation


class Validation:
    """The evaluations of one run on one worker. It is a context, so that no process outlives the run.

    Every method returns the evaluations that have been found since the last call, in the order of their steps. On other
    workers than the first, those made beside training are not returned.

    Attributes:
        latest: mean and deviation of the latest accuracy over its learners, percent. Beside training, workers other
            than the first have it after `finish`.
    """

    def __init__(
        self, config: RunConfig, context: WorkerContext, evaluator: Evaluator, held_out: tuple[Tensor, Tensor]
    ) -> None:
        """
        Args:
            config: of the run.
            context: of the worker.
            evaluator: trains and tests.
            held_out: validation images to test on, uint8 (M, C, H, W), and their labels (M,).
        """
        self.beside, self.learners = config.evaluation.beside, config.evaluation.validation_learners
        self.ipc, self.factor = config.images_per_class, config.images.factor
        self.context, self.evaluator, self.held_out = context, evaluator, held_out
        self.latest: dict[str, float] = {}
        self._waiting: dict[int, Snapshot] = {}
        self._restored: list[Validated] = []  # found while the state was restored
        self._process: EvaluationProcess | None = None

    def __enter__(self) -> Validation:
        if self.beside and self.context.first:
            self._process = EvaluationProcess(self.evaluator, self.learners, self.held_out, self.context.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close()

    @property
    def process_ended(self) -> bool:
        """Whether the process beside training is gone, so that evaluations are made in the way of training."""
        return self._process is not None and bool(self._process.ended)

    def evaluate(self, snapshot: Snapshot) -> Iterator[Validated]:
        """Evaluates a set, or has it evaluated. All workers call it after the same steps and use up the iterator.

        Raises:
            CondenseError: on all workers, where an evaluation beside training failed.
        """
        yield from self._begin(snapshot)
        if self.beside:
            yield from self._wait(AT_ONCE)

    def arrived(self) -> Iterator[Validated]:
        """Returns what has been found beside training; does not wait."""
        yield from self._restored_once()
        if self._process is not None:
            for step, evaluation in self._process.arrived():
                yield self._found(self._waiting.pop(step), evaluation)

    def finish(self) -> Iterator[Validated]:
        """Waits for all evaluations; then all workers have the same `latest`. All workers call it and use it up.

        Raises:
            CondenseError: as `evaluate`.
        """
        yield from self._restored_once()
        if not self.beside:
            return
        yield from self._wait(0)
        found = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        if self.context.first:
            found += torch.tensor([self.latest[MEAN], self.latest[STD]], dtype=torch.float64)
        self.latest = dict(zip((MEAN, STD), self.context.collective.sum_(found).tolist(), strict=True))

    def description(self) -> dict[str, float | None]:
        """Returns the latest accuracy as provenance has it: one learner has no deviation."""
        return self.latest | ({STD: None} if self.learners == 1 else {})

    def state(self) -> State:
        """Returns the latest accuracy, and the sets whose evaluations are not done."""
        tensors: dict[str, Tensor] = {}
        scalars = {_LATEST + name: value for name, value in self.latest.items()}
        for step, snapshot in self._waiting.items():
            name, by_class = f"{_WAITING}{step}.", (-1, self.ipc)
            tensors[name + "images"] = snapshot.images.unflatten(0, by_class)
            tensors[name + "labels"] = snapshot.labels.unflatten(0, by_class).clone()  # hard ones are every set's
            scalars |= {name + key: value for key, value in ({"done": snapshot.done} | snapshot.values).items()}
        return State(tensors, scalars)

    def restore_(self, checkpoint: Checkpoint) -> None:
        """Takes over what `state` gave, and begins the evaluations that were not done."""
        self.latest = _below(_LATEST, checkpoint.scalars)
        for step in sorted({int(name.split(".")[1]) for name in checkpoint.tensors if name.startswith(_WAITING)}):
            parts = _below(f"{_WAITING}{step}.", checkpoint.tensors)
            images, labels = (parts[name].flatten(0, 1).to(self.context.device) for name in ("images", "labels"))
            values = _below(f"{_WAITING}{step}.", checkpoint.scalars)
            # Where the run was resumed with evaluation.beside=false, the evaluation is made here and now.
            self._restored += self._begin(Snapshot(step, int(values.pop("done")), images, labels, values))

    def _restored_once(self) -> Iterator[Validated]:
        restored, self._restored = self._restored, []
        yield from restored

    def _begin(self, snapshot: Snapshot) -> Iterator[Validated]:
        images, labels = decode_set(snapshot.images, snapshot.labels, self.factor)
        if self._process is not None:
            self._waiting[snapshot.step] = snapshot
            self._process.ask(snapshot.step, images, labels)
        elif not self.beside:
            with explain_out_of_memory(lambda: TESTING):
                evaluation = self.evaluator.evaluate(
                    images, labels, [self.held_out], learners=self.learners, collective=self.context.collective
                )
            yield self._found(snapshot, evaluation)

    def _wait(self, left: int) -> Iterator[Validated]:
        """Waits until at most `left` evaluations are not done; what fails on the first worker is raised by all."""
        failure = None
        try:
            if self._process is not None:
                for step, evaluation in self._process.waited(left):
                    yield self._found(self._waiting.pop(step), evaluation)
        except CondenseError as error:
            failure = error
        raise_together(self.context.collective, failure, self.context.device)

    def _found(self, snapshot: Snapshot, evaluation: Evaluation) -> Validated:
        self.latest = {MEAN: evaluation.mean, STD: evaluation.std or 0.0}
        return Validated(snapshot, evaluation)


def _below(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """Returns the values whose name begins with the prefix, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
