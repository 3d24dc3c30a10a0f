"""Evaluates sets in a process of its own, while the run that asks for it goes on.

The process is spawned, because a fork would share the run's CUDA context and threads. It computes with one thread. The
threads of a run wait for each other at the end of every operation; a second process with as many threads would take
their cores in turn, and both would mostly wait. So it needs one core beside the run's, and the memory of one
evaluation.

It ends with the process that started it, whatever ends that one: a thread waits for that, also during an evaluation.
The two talk over a pipe that only they hold.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from condense.errors import CapacityError, CondenseError
from condense.learners.evaluation import TESTING, Evaluation, Evaluator
from condense.workers.collective import Alone
from condense.workers.memory import explain_out_of_memory, keep_freed_memory

log = logging.getLogger(__name__)

THREADS = 1  # of the process; see above
AT_ONCE = 2  # evaluations that are not done: one at work, one waiting
ENDED_S = 5.0  # for a process whose pipe is closed to be gone, so that it can be said what ended it


@dataclass(frozen=True)
class _Asked:
    """An evaluation that is not done. It has no answer to wait for where the process had ended before."""

    step: int
    images: Tensor
    labels: Tensor
    answer: Future[Evaluation] | None


class EvaluationProcess:
    """Runs one evaluator in a process of its own.

    Where that process ends, its evaluations are made here, with the same numbers.

    Attributes:
        ended: what ended the process, in words; empty while it is there.
    """

    def __init__(
        self, evaluator: Evaluator, learners: int, held_out: tuple[Tensor, Tensor], device: torch.device
    ) -> None:
        """Starts the process and does not wait for it: its imports take some seconds.

        Args:
            evaluator: trains and tests.
            learners: fresh networks behind each accuracy.
            held_out: what is tested on, uint8 (M, C, H, W) and int64 (M,).
            device: that computes, also there.
        """
        self._evaluator, self._learners, self._held_out, self._device = evaluator, learners, held_out, device
        self._asked: deque[_Asked] = deque()
        self.ended = ""
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(
            target=_answer, args=(theirs, evaluator, learners, device), name="condense-evaluation", daemon=True
        )
        self._process.start()
        theirs.close()
        self._calls = ThreadPoolExecutor(1, "to-evaluation")  # waits for the process in the run's stead
        self._calls.submit(self._pipe.send, _packed(*held_out))

    def ask(self, step: int, images: Tensor, labels: Tensor) -> None:
        """Asks for the accuracy of a set, named by its outer step; returns at once.

        Args:
            images: uint8 (N, C, H, W), as learners see them.
            labels: int64 (N,), or soft labels, float32 (N, classes).
        """
        images, labels = images.cpu(), labels.cpu()
        answer = None if self.ended else self._calls.submit(self._call, _packed(images, labels))
        self._asked.append(_Asked(step, images, labels, answer))

    def arrived(self) -> Iterator[tuple[int, Evaluation]]:
        """Yields steps and evaluations that are done, in the order of asking.

        It never waits, and leaves failures to `waited`.
        """
        while not self.ended and self._asked and (answer := self._asked[0].answer) and answer.done():
            if answer.exception() is not None:
                return
            yield self._asked.popleft().step, answer.result()

    def waited(self, left: int = 0) -> Iterator[tuple[int, Evaluation]]:
        """Yields steps and evaluations in the order of asking, until at most `left` are not done.

        Raises:
            NonFiniteError: a learner's loss stopped being finite.
            CapacityError: there is no memory for it here either, after that process had none.
        """
        while len(self._asked) > (0 if self.ended else left):
            yield self._asked[0].step, self._waited(self._asked[0])
            self._asked.popleft()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._calls.shutdown(cancel_futures=True)  # its thread's call ends with the process
        self._pipe.close()

    def _call(self, packed: tuple[Any, Any]) -> Evaluation:
        self._pipe.send(packed)
        answer = self._pipe.recv()
        if isinstance(answer, CondenseError):
            raise answer
        assert isinstance(answer, Evaluation)
        return answer

    def _waited(self, asked: _Asked) -> Evaluation:
        if asked.answer is not None and not self.ended:
            try:
                return asked.answer.result()
            except (CapacityError, EOFError, OSError) as error:
                self.ended = error.problem if isinstance(error, CapacityError) else self._end()
                self.close()
                log.warning(
                    "the process that evaluated the set after outer step %d has ended (%s): this evaluation and later"
                    " ones are made in the way of training",
                    asked.step,
                    self.ended,
                )
        return _evaluated(self._evaluator, self._learners, asked.images, asked.labels, self._held_out, self._device)

    def _end(self) -> str:
        """Returns what ended the process, in words."""
        self._process.join(ENDED_S)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}, as where the system has no memory left" if name == "SIGKILL" else name


def _answer(pipe: Connection, evaluator: Evaluator, learners: int, device: torch.device) -> None:
    """Runs in the process: takes the held-out images, then set after set, and sends an evaluation or an error back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the run ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    try:
        held_out = _unpacked(pipe.recv())
        while True:
            images, labels = _unpacked(pipe.recv())
            try:
                found = _evaluated(evaluator, learners, images, labels, held_out, device)
            except CondenseError as error:
                pipe.send(error)
            else:
                pipe.send(found)
    except (EOFError, OSError):  # the run is gone
        return


def _evaluated(
    evaluator: Evaluator,
    learners: int,
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor],
    device: torch.device,
) -> Evaluation:
    """Evaluates a set in this process alone."""
    images, labels = images.to(device), labels.to(device)
    with explain_out_of_memory(lambda: TESTING):
        return evaluator.evaluate(images, labels, [held_out], learners=learners, collective=Alone())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _packed(images: Tensor, labels: Tensor) -> tuple[Any, Any]:
    """Packs tensors as arrays: torch would send a tensor as a file of shared memory, of which a container often has
    little.
    """
    return images.cpu().numpy(), labels.cpu().numpy()


def _unpacked(packed: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    images, labels = packed
    return torch.from_numpy(images), torch.from_numpy(labels)
