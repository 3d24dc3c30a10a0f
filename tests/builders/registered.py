"""Folders that are registered, and what is in them."""

from __future__ import annotations

from pathlib import Path


def make_folder(folder: Path, content: bytes = b"PAR1 pixels") -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "data.parquet").write_bytes(content)
    (folder / "README.md").write_text("# A dataset\n")
    (folder / "figures" / "bits.png").write_bytes(bytes(range(256)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
