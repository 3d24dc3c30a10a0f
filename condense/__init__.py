"""Turns an image dataset into a tiny synthetic one that trains a network nearly as well and costs few bits.

    result = condense.run("quickstart", ["bits_weight=20"])
    images = condense.CondensedImages(result.path, normalise=True)      # a Dataset for PyTorch

The names below are loaded when they are first used, so that `import condense` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condense import errors
    from condense.api import RunResult, evaluate, load_dataset, measure, run, tune
    from condense.condensation.config import RunConfig
    from condense.synthetic.dataset import CondensedDataset, CondensedImages

__version__ = "0.2.0"

__all__ = [
    "CondensedDataset",
    "CondensedImages",
    "RunConfig",
    "RunResult",
    "__version__",
    "errors",
    "evaluate",
    "load_dataset",
    "measure",
    "run",
    "tune",
]

_MODULES = {
    "CondensedDataset": "condense.synthetic.dataset",
    "CondensedImages": "condense.synthetic.dataset",
    "RunConfig": "condense.condensation.config",
    "RunResult": "condense.api",
    "evaluate": "condense.api",
    "load_dataset": "condense.api",
    "measure": "condense.api",
    "run": "condense.api",
    "tune": "condense.api",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("condense.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'condense' has no attribute {name!r}")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
