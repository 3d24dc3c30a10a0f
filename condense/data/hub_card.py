"""Reads which files the README.md of a Hugging Face repository gives to each split, under `configs` in its head."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import yaml

from condense.data.split_names import SPLITS, NamedSplits, Split, named_splits, shown
from condense.errors import SourceError


def sort_by_card(where: str, names: Sequence[str], readme: str, config: str | None) -> NamedSplits | None:
    """Gives each split the files that the README names; None where it names no train files, or not this configuration.

    Without `config` it is the one that the README marks as default, or the only one.

    Raises:
        SourceError: several configurations, none of them the default.
    """
    listed = {str(entry["config_name"]): entry for entry in _configs(readme) if _train(names, entry)}
    if config is None:
        default = [name for name, entry in listed.items() if entry.get("default") or name == "default"]
        if len(listed) > 1 and len(default) != 1:
            raise SourceError(
                f"{where} holds {len(listed)} configurations, {', '.join(listed)}, as its README.md says",
                f"choose one with data.config={next(iter(listed))}, or the files with data.split_files",
            )
        config = (default or list(listed) or [""])[0]
    if config not in listed:
        return None
    found = _files(names, listed[config])
    taken: dict[Split, tuple[str, ...]] = {split: found.pop(split) for split in SPLITS if split in found}
    for name in list(found):
        said = named_splits(name)
        for split in SPLITS:
            if split not in taken and ({split} == said or (split == "test" and said == {"evaluation"})):
                taken[split] = found.pop(name)
    used = {name for files in taken.values() for name in files}
    left_out = [f"split {name}: {shown(files)}" for name, files in found.items()]
    known = used | {name for files in found.values() for name in files}
    if rest := [name for name in names if name not in known]:
        left_out.append(f"not of configuration {config}: {shown(rest)}")
    return NamedSplits(**taken, left_out=tuple(left_out))


def _configs(readme: str) -> list[dict[str, Any]]:
    if not readme.startswith("---"):
        return []
    try:
        head = yaml.safe_load(readme.split("---", 2)[1])
    except yaml.YAMLError:
        return []
    entries = head.get("configs") if isinstance(head, dict) else None
    return [e for e in entries or [] if isinstance(e, dict) and "config_name" in e and "data_files" in e]


def _files(names: Sequence[str], entry: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    given = entry["data_files"]
    parts = given if isinstance(given, list) else [given]
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        split, paths = (part.get("split", "train"), part.get("path", [])) if isinstance(part, dict) else ("train", part)
        patterns = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        fitting = tuple(n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns))
        if fitting:
            found[str(split)] = found.get(str(split), ()) + fitting
    return found


def _train(names: Sequence[str], entry: dict[str, Any]) -> bool:
    return any(named_splits(split) == {"train"} for split in _files(names, entry))
