"""Every error that Condense raises on purpose.

    CondenseError
    ├── ConfigError        a key, value or combination of settings
    ├── SourceError        the real data: files, images, labels, splits
    ├── FlowError          a flow: file, shape, digest, exactness
    ├── CheckpointError    a checkpoint to resume from
    ├── DatasetError       a condensed dataset: Parquet file, registry name or version
    ├── TrackingError      the MLflow server or store
    ├── OutputError        a place to write to
    ├── ClusterError       the Ray cluster
    ├── CapacityError      memory that the machine or its GPU does not have
    └── NonFiniteError     a loss, gradient or image that stopped being a number

Each message says what was wrong (naming the file, row or key), and what to do. All are picklable, because Ray
carries them from worker to driver.
"""

from __future__ import annotations


class CondenseError(Exception):
    """Base class: `problem` says what was expected and what was found, `remedy` what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.remedy}" if self.remedy else self.problem


class ConfigError(CondenseError):
    """A configuration key, its value, or two settings that exclude each other."""


class SourceError(CondenseError):
    """Real data that is missing, unreadable, mislabelled or too small."""


class FlowError(CondenseError):
    """A flow that is missing, damaged, of another shape, or not exact."""


class CheckpointError(CondenseError):
    """A checkpoint that is truncated or belongs to another run."""


class DatasetError(CondenseError):
    """A condensed dataset that is missing, damaged or of an unknown name or version."""


class TrackingError(CondenseError):
    """A tracking server that cannot be reached or refuses."""


class OutputError(CondenseError):
    """A folder or file that cannot be written."""


class ClusterError(CondenseError):
    """A Ray cluster that cannot be reached, refuses, or lost too many of its workers."""


class CapacityError(CondenseError):
    """Memory that the machine or its GPU does not have."""


class NonFiniteError(CondenseError):
    """A quantity that stopped being finite; the run stops there rather than going on past it."""


def reason_of(error: BaseException) -> str:
    """Returns the first line of what an error of another library says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
