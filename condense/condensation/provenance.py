"""Collects the facts that travel with a condensed dataset, so that it can be used and remade from the file alone."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import condense
from condense.condensation.config import RunConfig
from condense.data.normalisation import Normalisation
from condense.flow.bits import Density, measure, png_bytes
from condense.pixels import LEVELS

PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "ray", "mlflow")


def describe(
    config: RunConfig,
    *,
    source: dict[str, Any],
    flow: dict[str, str] | None,
    normalisation: Normalisation,
    content_digest: str,
) -> dict[str, Any]:
    """Describes where a set came from and how its bytes become a network's input. The run adds accuracies and bits."""
    return {
        "config": config.as_dict(),
        "identity": config.identity(),
        "seed": config.seed,
        "versions": versions(),
        "git_revision": git_revision(),
        "source": source,
        "flow": flow,
        "value_range": [0, LEVELS - 1],
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "decoder": {"name": "tiles" if config.images.factor > 1 else "pixels", "factor": config.images.factor},
        "content_digest": content_digest,
    }


def versions() -> dict[str, str]:
    """Returns the version of Condense, of Python, and of each installed package that a result can depend on."""
    found = {"condense": condense.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Returns the revision of the checkout that this code runs from, with "-dirty" where the code was changed.

    Installed code has no checkout: there it is what CONDENSE_REVISION says, which the container image sets, or None.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # fails inside the checkout of something else
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CONDENSE_REVISION")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    return found.stdout.strip()


def cost(
    density: Density | None, images: Tensor, *, seed: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Measures bits (N,), bits per dim (N,) and PNG bytes (N,) of uint8 images (N, C, H, W); no bits without a flow."""
    if density is None:
        return None, None, png_bytes(images)
    report = measure(density, images, seed=seed, device=device)
    return report.bits, report.bits_per_dim, report.png_bytes
