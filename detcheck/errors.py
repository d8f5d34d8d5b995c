"""The exceptions of detcheck. Each message is one sentence: the problem, then what to do.

Messages name arguments in backticks, such as `batch_sizes`; the command line turns these into its
flags.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the program: 0 done or passed, 1 gate failed, 2 usage, 3 not measured."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INCONCLUSIVE = 3


class DetcheckError(Exception):
    """Base of all errors that detcheck raises; `exit_code` is the exit code of the program."""

    exit_code: ExitCode = ExitCode.USAGE


class UsageError(DetcheckError):
    """The request itself cannot be carried out: a bad option, a missing file, an unknown model."""


class RunDirectoryError(UsageError):
    """A run directory is missing, truncated, from a newer schema, edited, or in the way."""


class ChangedRunError(RunDirectoryError):
    """A run cannot go on, since something that can change its answers is another one now."""


class ModelError(UsageError):
    """A model cannot be found or loaded, or cannot answer the experiment."""


class MeasurementError(DetcheckError):
    """The experiment is valid but could not be measured to its end; committed trials are kept."""

    exit_code = ExitCode.INCONCLUSIVE


class OutOfMemory(MeasurementError):  # noqa: N818  (as PyTorch and CUDA name it)
    """The device or host ran out of memory at a batch size."""


class StorageError(MeasurementError):
    """Results could not be written: the disk is full or went away."""
