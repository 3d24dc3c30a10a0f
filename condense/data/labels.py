"""Checks labels and the names of classes, and brings those of one split into the order of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from condense.errors import SourceError

Labels = NDArray[np.int64]


def check_labels(labels: Labels, class_names: Sequence[str], where: Callable[[int], str]) -> None:
    """Raises SourceError naming the first row whose label is outside [0, len(class_names)); `where(row)` names it."""
    check_not_negative(labels, where)
    wrong = np.flatnonzero(labels >= len(class_names))
    if len(wrong):
        row = int(wrong[0])
        raise SourceError(
            f"{where(row)}: label {labels[row]} is out of range, expected 0 to {len(class_names) - 1}",
            "number the classes from 0",
        )


def check_not_negative(labels: Labels, where: Callable[[int], str]) -> None:
    """Raises SourceError naming the first row whose label is below 0: in many datasets such a row has no label."""
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        row = int(negative[0])
        many = f"; {len(negative)} rows have a label below 0" if len(negative) > 1 else ""
        raise SourceError(
            f"{where(row)}: label {labels[row]} is below 0, which marks a row without a label{many}",
            "drop these rows, or label them; the classes count from 0",
        )


def check_names(class_names: Sequence[str], where: str) -> None:
    """Raises SourceError naming two labels that have the same class name."""
    for label, name in enumerate(class_names):
        if (first := class_names.index(name)) < label:
            raise SourceError(
                f"{where}: labels {first} and {label} have the same class name, {name!r}",
                "give each class a name of its own, or its rows one label",
            )


def check_known(class_names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises SourceError if a class is none of train's."""
    if set(class_names) - set(known):
        raise SourceError(
            f"{where}: its classes {list(class_names)} are not those of train, {list(known)}",
            "give a split of the same classes; their order may differ",
        )


def in_order_of(
    known: Sequence[str], labels: Labels, class_names: Sequence[str], where: Callable[[int], str]
) -> Labels:
    """Renumbers labels that count `class_names` to count `known`, by name; raises SourceError naming the first row of
    another class.
    """
    numbers = {name: number for number, name in enumerate(known)}
    moved = np.array([numbers.get(name, -1) for name in class_names], dtype=np.int64)[labels]
    unknown = np.flatnonzero(moved < 0)
    if len(unknown):
        row = int(unknown[0])
        raise SourceError(
            f"{where(row)}: class {class_names[labels[row]]!r} is not one of train, {list(known)}",
            "drop these rows, or name the classes as train does",
        )
    return moved
