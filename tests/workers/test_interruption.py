"""What an interrupted job says, of steps and checkpoints of every kind."""

from __future__ import annotations

import pytest

from condense.errors import CheckpointError
from condense.workers.context import Progress
from condense.workers.interruption import RESUMING, interruption_explained, where_it_stopped


@pytest.mark.parametrize(
    ("done", "total", "kept", "said"),
    [
        (41, 400, 41, "stopped at step 41 of 400; the same command goes on"),
        (43, 400, 40, "stopped at step 43 of 400; the same command goes on at step 40"),
        (38, 400, 41, "stopped at step 41 of 400; the same command goes on"),  # the last reports were on their way
        (3, 400, 0, "stopped at step 3 of 400, before its first checkpoint; the same command starts anew"),
        (7, 400, 807, "stopped at step 7 of 400; the same command goes on"),  # of the third attempt at a target of bits
        (400, 400, 400, "stopped at step 400 of 400; the same command goes on"),
        (0, 0, 0, "stopped before its first step; the same command starts it"),
        (0, 0, 41, "stopped before its first step; the same command goes on at step 41"),
    ],
)
def test_the_sentence_names_where_it_stopped_and_where_it_goes_on(done: int, total: int, kept: int, said: str) -> None:
    assert where_it_stopped(done, total, kept) == said


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_carries_the_sentence_and_an_error_none(kind: type[BaseException]) -> None:
    seen: list[Progress] = []

    def end(raised: type[BaseException]) -> None:
        with interruption_explained(seen.append, lambda: 5, RESUMING) as tell:
            tell(Progress("fitting", 5, 9, {}))
            tell(Progress("testing set", 1, 4, {}, counts="sets"))
            raise raised

    for raised, notes in ((kind, ["stopped at step 5 of 9; the same command with --resume goes on"]), (ValueError, [])):
        with pytest.raises(raised) as caught:
            end(raised)
        assert getattr(caught.value, "__notes__", []) == notes
    assert [at.stage for at in seen] == ["fitting", "testing set"] * 2


def test_storage_that_does_not_answer_hides_no_interruption() -> None:
    def kept() -> int:
        raise CheckpointError("storage=x cannot be read")

    with pytest.raises(KeyboardInterrupt) as caught, interruption_explained(lambda at: None, kept):
        raise KeyboardInterrupt
    assert "storage=x cannot be read" in caught.value.__notes__[0]
