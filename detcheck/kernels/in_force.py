"""One context for "these kernels compute now": engines, replays and the op audit all use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detcheck.errors import MeasurementError
from detcheck.kernels.mode import BatchInvariantMode, batch_invariant
from detcheck.kernels.self_check import PASSED
from detcheck.kernels.settings import KernelSettings


@contextmanager
def kernels_in_force(
    setting: str, *, must_pass: bool = True, pack_weights: str = "auto"
) -> Iterator[BatchInvariantMode | None]:
    """Compute with the kernels of `setting`, such as `stock` or `batch-invariant:matmul`.

    Yields the mode that is on, or None for stock kernels. Raises UsageError if the setting is not
    known. Raises MeasurementError if the mode's self-check fails, unless `must_pass` is false: then
    the failed check is left in the mode's proof. `pack_weights` is that of `batch_invariant`.
    """
    families = KernelSettings.parse(setting).families
    if not families:
        yield None
        return
    with batch_invariant(families, pack_weights=pack_weights) as mode:
        result = mode.proof().self_check
        if must_pass and result != PASSED:
            raise MeasurementError(f"{setting} kernels are not in force: {result}.")
        yield mode
