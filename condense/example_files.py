"""The examples that ship with Condense: a YAML file each, known by its name, such as quickstart or flows/rgb32."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).parent / "examples"
_SUFFIX = ".yaml"


def example_names() -> tuple[str, ...]:
    """Returns the names of all examples, those of flows last."""
    names = (file.relative_to(_FOLDER).with_suffix("").as_posix() for file in _FOLDER.rglob(f"*{_SUFFIX}"))
    return tuple(sorted(names, key=lambda name: ("/" in name, name)))


def example_file(name: str) -> Path | None:
    """Returns the file of an example; None for any other name.

    Args:
        name: as `example_names` has it, or as it is called in a checkout: examples/NAME.yaml.
    """
    plain = name.removeprefix("examples/").removesuffix(_SUFFIX)
    return _FOLDER / f"{plain}{_SUFFIX}" if plain in example_names() else None


def located(path: Path) -> Path:
    """Returns the path where a file is there, else the example of that name; the path, if there is neither."""
    return path if path.is_file() else example_file(path.as_posix()) or path


def about(file: Path) -> str:
    """Returns the first thought of the comment that an example begins with."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.removeprefix("#").split()
    return re.split(r"; |(?<!et al)\.(?: |$)", " ".join(words))[0]
