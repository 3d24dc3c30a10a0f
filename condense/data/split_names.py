"""Tells the splits of files and folders by the words in their names. The one table of these words is here."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from condense.errors import SourceError

WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "evaluation",  # counts as test where nothing is named test
    "evaluation": "evaluation",
}
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
CHOOSE = 'say which with data.split_files, as in data.split_files={train: "a*.parquet", test: "b*.parquet"}'
_SHOWN = 6


@dataclass(frozen=True)
class NamedSplits:
    """Names of the files of each split in name order, and in words what belongs to none of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def named_splits(name: str) -> set[str]:
    """Returns train, validation, test, evaluation: what the whole words of a name say, in any case."""
    return {WORDS[word] for word in re.findall(r"[^\W\d_]+", name.lower()) if word in WORDS}


def shown(names: Sequence[str]) -> str:
    """Lists some names for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def left_out(hidden: int, others: Iterable[str]) -> list[str]:
    """Says in words what of a folder is not read: how many hidden files, and how many of other kinds."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others)
    said = [f"{hidden} hidden file{'s' * (hidden > 1)}"] if hidden else []
    if total := kinds.total():
        said.append(f"{total} file{'s' * (total > 1)} of other kinds ({', '.join(sorted(kinds))})")
    return said


def sort_by_pattern(where: str, names: Sequence[str], patterns: Mapping[Split, str]) -> NamedSplits:
    """Gives each split the names that match its pattern, in which * is any text; raises SourceError."""
    found = {split: tuple(n for n in names if fnmatch.fnmatchcase(n, pattern)) for split, pattern in patterns.items()}
    for split, pattern in patterns.items():
        if not found[split]:
            raise SourceError(f"{where}: data.split_files.{split}={pattern} fits none of: {shown(names)}")
    taken = [name for split in found for name in found[split]]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise SourceError(f"{where}: data.split_files gives {shown(twice)} to two splits", "narrow the patterns")
    if "train" not in found:
        raise SourceError(f"{where}: data.split_files names no train files", 'add train: "PATTERN" to it')
    rest = [name for name in names if name not in taken]
    return NamedSplits(**found, left_out=(f"not in data.split_files: {shown(rest)}",) if rest else ())


def sort_by_name(where: str, names: Sequence[str], config: str | None = None) -> NamedSplits:
    """Gives each split the Parquet files whose names or folders say so; where no name says anything, all are train.

    Args:
        where: for messages.
        names: paths below the folder.
        config: the configuration to take: a folder, or what stands before the word of the split in file names.

    Raises:
        SourceError: what cannot be told: some files with a split and some without, two splits in one path, two
            configurations.
    """
    left_out: list[str] = []
    if config is not None:
        names, left_out = _of_configuration(where, names, config)
    splits = _split_of_each(where, names)
    if not splits:
        return NamedSplits(tuple(names), left_out=tuple(left_out))
    if unnamed := [name for name in names if name not in splits]:
        raise SourceError(
            f"{where}: {shown(unnamed)}: no split in the name, but {shown(list(splits))} have one", CHOOSE
        )
    found = {split: tuple(n for n in names if splits[n] == split) for split in (*SPLITS, "evaluation")}
    own = {_configuration(name) for name in found["train"]}
    if len(own) > 1:
        raise _several(where, names, own)
    for split in (*SPLITS, "evaluation")[1:]:
        others = {_configuration(name) for name in found[split]}
        if len(others) > 1:
            if not own or not own <= others:
                raise _several(where, names, others)
            kept = tuple(name for name in found[split] if _configuration(name) in own)
            rest = [name for name in found[split] if name not in kept]
            left_out.append(f"of another configuration: {shown(rest)}")
            found[split] = kept
    evaluation = found.pop("evaluation")
    if evaluation and found["test"]:
        left_out.append(f"not read beside test: {shown(evaluation)}")
    found["test"] = found["test"] or evaluation
    return NamedSplits(**found, left_out=tuple(left_out))


def beside(name: str, names: Sequence[str]) -> NamedSplits:
    """Finds the other splits of one train file among the names in its folder: those that differ in the word of the
    split and the number of the shard alone.
    """
    if named_splits(name) != {"train"}:
        other = name.replace("train", "test")  # as in mytrain, where it is no word of its own
        return NamedSplits((name,), test=(other,) if other != name and other in names else ())
    alike = [n for n in names if n != name and _shape(n) == _shape(name) and named_splits(n) != {"train"}]
    found = sort_by_name(name, [name, *alike])
    return NamedSplits((name,), found.validation, found.test, found.left_out)


def _shape(name: str) -> str:
    return re.sub(
        r"[^\W\d_]+", lambda word: "*" if word[0] in WORDS else word[0], re.sub(r"-\d+-of-\d+", "", name.lower())
    )


def _split_of_each(where: str, names: Sequence[str]) -> dict[str, str]:
    lowered, splits = {name.lower() for name in names}, {}
    for name in names:
        said, low = named_splits(name), name.lower()
        if len(said) > 1:
            raise SourceError(f"{where}: {name} names two splits, {' and '.join(sorted(said))}", CHOOSE)
        # mytrain.parquet beside mytest.parquet: no words of their own, yet a pair.
        if not said and "train" in low and low.replace("train", "test") in lowered:
            said = {"train"}
        if not said and "test" in low and low.replace("test", "train") in lowered:
            said = {"test"}
        if said:
            splits[name] = said.pop()
    return splits


def _configuration(name: str) -> str:
    """Returns the folders of a path that name no split, and what stands before the word of the split in its name."""
    *folders, file = name.split("/")
    kept = [folder for folder in folders if folder != "data" and not named_splits(folder)]
    for word in re.finditer(r"[^\W\d_]+", file.lower()):
        if word[0] in WORDS:
            kept.append(re.sub(r"^[\W\d_]+|[\W\d_]+$", "", file[: word.start()]))
            break
    return "/".join(part for part in kept if part)


def _of_configuration(where: str, names: Sequence[str], config: str) -> tuple[list[str], list[str]]:
    known = {name: _configuration(name) for name in names}
    taken = [name for name in names if known[name] == config or name.startswith(f"{config}/")]
    if not taken:
        listed = shown(sorted(set(known.values()) - {""})) or "none"
        raise SourceError(f"{where}: no configuration {config!r}; there is: {listed}", "set data.config to one of them")
    rest = [name for name in names if name not in taken]
    return taken, [f"of another configuration: {shown(rest)}"] if rest else []


def _several(where: str, names: Sequence[str], configurations: set[str]) -> SourceError:
    listed = sorted(config or "(no name)" for config in configurations)
    chosen = next((config for config in sorted(configurations) if config), "NAME")
    return SourceError(
        f"{where} holds {len(listed)} configurations, {', '.join(listed)}: {shown(names)}",
        f"choose one with data.config={chosen}, or the files with data.split_files",
    )
