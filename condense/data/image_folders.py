"""Finds the folder of each split below a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from condense.data.split_names import Split, named_splits, shown
from condense.errors import SourceError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"}
)
_CHOOSE = "say which with data.split_files, as in data.split_files={train: FOLDER, test: FOLDER}"


@dataclass(frozen=True)
class SplitFolders:
    """The folder of each split, None where there is none; left_out says in words what is not read."""

    train: Path
    validation: Path | None = None
    test: Path | None = None
    left_out: tuple[str, ...] = ()


def split_folders(
    path: Path, *, config: str | None = None, patterns: Mapping[Split, str] | None = None, wanted: str = "train"
) -> SplitFolders:
    """Finds the folders of train, validation and test; where no folder is named so, the folder itself is `wanted`.

    A folder is a split if its name says so and it holds folders, those of the classes. A class may be named train: it
    holds images.

    Args:
        path: the dataset.
        config: a folder in it to take instead.
        patterns: the folder of each split, below `path`; they replace what the names say.
        wanted: the split that has to be there.

    Raises:
        SourceError: no such folder, or the splits cannot be told.
    """
    path = path / config if config else path
    if not path.is_dir():
        raise SourceError(f"folder {path} does not exist", "give a folder that holds one folder per class")
    if patterns:
        return _given(path, patterns)
    folders = folders_in(path)
    said = {folder: named_splits(folder.name) for folder in folders}
    named = [folder for folder in folders if said[folder]]
    if not (len(named) == len(folders) > 1):
        named = [folder for folder in named if folders_in(folder) and not _holds_images(folder)]
    if not named:
        return SplitFolders(path)
    others = [f for f in folders if f not in named and any(map(is_image, f.rglob("*")))]
    if others:
        raise SourceError(
            f"folder {path}: {shown([f.name for f in others])}: no split in the name, but "
            f"{shown([f.name for f in named])} name one",
            _CHOOSE,
        )
    found: dict[str, Path] = {}
    for folder in named:
        if len(said[folder]) > 1:
            raise SourceError(f"folder {folder} names two splits, {' and '.join(sorted(said[folder]))}", _CHOOSE)
        (split,) = said[folder]
        if split in found:
            raise SourceError(f"folder {path}: {found[split].name} and {folder.name} are both {split}", _CHOOSE)
        found[split] = folder
    left_out = [f"{f.name}: a folder without images" for f in folders if f not in named]
    evaluation = found.pop("evaluation", None)
    if evaluation is not None and found.setdefault("test", evaluation) != evaluation:
        left_out.append(f"{evaluation.name}: not read beside {found['test'].name}")
    if wanted not in found:
        raise SourceError(f"folder {path} holds no folder of {wanted}, but {shown([f.name for f in named])}", _CHOOSE)
    train = found.pop("train", found[wanted])
    return SplitFolders(train, **found, left_out=tuple(left_out))


def folders_in(path: Path) -> list[Path]:
    """Returns the folders in a folder in name order, hidden ones left out."""
    return sorted((p for p in path.iterdir() if p.is_dir() and not is_hidden(p)), key=lambda p: p.name)


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"


def is_image(path: Path) -> bool:
    """Tells an image by its suffix; a hidden file is none."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path)


def _holds_images(folder: Path) -> bool:
    return any(map(is_image, folder.iterdir()))


def _given(path: Path, patterns: Mapping[Split, str]) -> SplitFolders:
    found = {}
    for split, pattern in patterns.items():
        fitting = sorted(p for p in path.glob(pattern) if p.is_dir())
        if len(fitting) != 1:
            listed = shown([p.name for p in fitting or folders_in(path)])
            raise SourceError(
                f"folder {path}: data.split_files.{split}={pattern} fits {len(fitting)} folders; there is: {listed}",
                "name one folder",
            )
        found[split] = fitting[0]
    if "train" not in found:
        raise SourceError(f"folder {path}: data.split_files names no train folder", "add train: FOLDER to it")
    rest = [f"{p.name}: not in data.split_files" for p in folders_in(path) if not _leads_to(p, found)]
    return SplitFolders(**found, left_out=tuple(rest))


def _leads_to(folder: Path, found: Mapping[Split, Path]) -> bool:
    return any(folder == other or folder in other.parents for other in found.values())
