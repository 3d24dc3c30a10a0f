"""The error tree: every class says what to do and survives the way from a Ray worker to its driver."""

from __future__ import annotations

import copy
import pickle

import pytest

import condense.errors
from condense.errors import CondenseError


def tree(root: type[CondenseError]) -> list[type[CondenseError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


TREE = [cls for cls in tree(CondenseError) if cls.__module__.split(".")[0] in ("condense", "cluster", "tuning")]


@pytest.mark.parametrize("cls", TREE)
@pytest.mark.parametrize("arguments", [("row 3 is grey", "convert it"), ("row 3 is grey",)])
def test_every_error_survives_pickle(cls: type[CondenseError], arguments: tuple[str, ...]) -> None:
    error = cls(*arguments)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error)
        assert (twin.problem, twin.remedy) == (error.problem, error.remedy)


@pytest.mark.parametrize("cls", TREE)
def test_every_error_is_drawn_in_the_picture_of_the_tree(cls: type[CondenseError]) -> None:
    assert cls.__name__ in str(condense.errors.__doc__)
    assert cls.__doc__


def test_the_message_holds_the_problem_and_then_the_remedy() -> None:
    assert str(CondenseError("row 3 is grey", "convert it")) == "row 3 is grey\n  -> convert it"
    assert str(CondenseError("row 3 is grey")) == "row 3 is grey"
