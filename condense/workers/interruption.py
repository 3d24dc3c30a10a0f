"""Says where a job stood when it was interrupted, and how it goes on.

An interruption is a KeyboardInterrupt or a SystemExit. The sentence travels with it as a note: Python shows the notes
of an exception with its traceback, and the command line prints them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from condense.errors import CondenseError
from condense.workers.context import Progress

SAME = "the same command"
RESUMING = "the same command with --resume"


@contextmanager
def interruption_explained(
    progress: Callable[[Progress], None], kept: Callable[[], int], again: str = SAME
) -> Iterator[Callable[[Progress], None]]:
    """Gives the enclosed block a `progress` to call; adds a sentence to the interruption that ends the block.

    Args:
        progress: called with what the block reports.
        kept: returns the step of the latest checkpoint, 0 without one; called at an interruption.
        again: what goes on with the job.
    """
    done, total = 0, 0

    def tell(at: Progress) -> None:
        nonlocal done, total
        if at.counts == "steps":
            done, total = at.done, at.total
        progress(at)

    try:
        yield tell
    except (KeyboardInterrupt, SystemExit) as interruption:
        try:
            interruption.add_note(where_it_stopped(done, total, kept(), again))
        except CondenseError as error:
            interruption.add_note(f"stopped at step {done} of {total}, and its checkpoints cannot be seen: {error}")
        raise


def where_it_stopped(done: int, total: int, kept: int, again: str = SAME) -> str:
    """Returns the sentence: at which step a job stopped, and where it goes on.

    Args:
        done: steps that were done; a job with several attempts counts those of the latest.
        total: steps in all, of one attempt; 0 where the first step was not reached.
        kept: the step of the latest checkpoint, all attempts together; 0 without one.
        again: what goes on with the job.
    """
    if not total:
        return f"stopped before its first step; {again} " + (f"goes on at step {kept}" if kept else "starts it")
    kept = (kept - 1) % total + 1 if kept else 0
    if not kept:
        return f"stopped at step {done} of {total}, before its first checkpoint; {again} starts anew"
    at = f"stopped at step {max(done, kept)} of {total}; {again} goes on"
    return at if kept >= done else f"{at} at step {kept}"
