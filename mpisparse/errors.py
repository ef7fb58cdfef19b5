"""The exceptions that mpisparse raises, each with the exit code of a command that ends in it.

    MpiSparseError                 70  an invariant broke
    ├── ConfigError                78  an option or a combination of options is wrong
    ├── DataError                  78  a data file is missing, damaged or does not fit
    ├── LaunchError                78  the job was started in a way that cannot work
    ├── WireError                  70  a message is damaged, truncated, stale or foreign
    ├── CommError                  70  a buffer does not fit what is to travel
    ├── RankMismatchError          70  the ranks hold or do different things
    ├── NonFiniteError             70  a gradient holds NaN or infinity
    ├── HangError                  74  a rank did not come where the others wait for it
    ├── CheckpointError            70  a checkpoint is missing, damaged or does not fit
    └── RunDirectoryError          70  a file of the run directory cannot be written, or the directory is gone

Every message says what happened, on which rank, the value, the rule, and the way out.
"""

from __future__ import annotations

from typing import TypeVar


class MpiSparseError(Exception):
    """Base of every error that mpisparse raises on purpose."""

    exit_code = 70
    #: True when every rank raised this same error at the same place, so that one of them may speak for all.
    on_all_ranks = False


class ConfigError(MpiSparseError, ValueError):
    """An option, or a combination of options, is wrong."""

    exit_code = 78


class DataError(MpiSparseError):
    """A data file is missing, damaged, or does not fit the run."""

    exit_code = 78


class LaunchError(MpiSparseError):
    """The job was started in a way that cannot work."""

    exit_code = 78


class WireError(MpiSparseError):
    """A message is damaged, truncated, stale or foreign."""


class CommError(MpiSparseError):
    """A buffer does not fit what is to travel, refused before MPI is called."""


class RankMismatchError(MpiSparseError):
    """The ranks hold different models or settings, or are at different steps."""


class NonFiniteError(MpiSparseError):
    """A gradient holds NaN or infinity."""


class HangError(MpiSparseError):
    """A rank did not come where the others wait for it. Said by the watchdog, which then ends the job."""

    exit_code = 74


class CheckpointError(MpiSparseError):
    """A checkpoint is missing, damaged, or does not fit the run."""


class RunDirectoryError(MpiSparseError):
    """A file of the run directory cannot be written, or the directory was moved or removed."""


Raised = TypeVar("Raised", bound=MpiSparseError)


def alike(error: Raised) -> Raised:
    """Return `error`, marked as one that every rank raises at the same place."""
    error.on_all_ranks = True
    return error
