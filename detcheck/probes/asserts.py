"""One assertion for a kernel's own tests: is a row's result independent of its batch?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from detcheck.errors import UsageError
from detcheck.probes.relations import (
    REQUEST_RELATIONS,
    ROW_RELATIONS,
    USUAL_RELATIONS,
    Function,
    Outcome,
    Tensors,
    run,
    try_relation,
)
from detcheck.text import count, verb


class NotBatchInvariant(AssertionError):  # noqa: N818  (a finding, not a fault of the program)
    """A row depends on the rest of its batch; `outcomes` has one item for each broken relation."""

    def __init__(self, outcomes: tuple[Outcome, ...]):
        self.outcomes = outcomes
        super().__init__("not batch-invariant: " + "; ".join(map(_sentence, outcomes)))


def assert_batch_invariant(
    function: Function,
    *inputs: torch.Tensor,
    relations: Iterable[str] = USUAL_RELATIONS,
    batch_sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Assert that `function(*inputs)` gives every row the same bits whichever rows share its batch.

    Every input and every output is a tensor whose first dimension is the batch. The function
    closes over the tensors that all rows share, such as weights. Relations: `repeat` (the same
    call again), `batch-size` (the first rows in batches of `batch_sizes`), `position` (the rows
    rotated), `neighbours` (a row among copies of itself, zeros, large noise); if asked for,
    `layout` (the rows lie otherwise in memory: the batch innermost, with gaps, unaligned). By
    default `batch_sizes` are those at which kernels change: 1, 2, 3, 4, 7, … below the batch.

        def test_my_kernel():
            detcheck.assert_batch_invariant(lambda x: my_matmul(x, weight), torch.randn(129, 4096))

    Returns the number of rows compared under each relation. Raises NotBatchInvariant (an
    AssertionError) that names the relation, batch size, row and ULPs. Raises UsageError if the
    check could not fail: a batch of one, rows that are all equal, outputs that are all NaN or
    that ignore the inputs.
    """
    asked = tuple(dict.fromkeys((relations,) if isinstance(relations, str) else relations))
    _check_relations(asked)
    _check_inputs(inputs)
    sizes = None if batch_sizes is None else _checked_sizes(batch_sizes, inputs[0].shape[0])
    reference = run(function, inputs)
    _check_outputs(reference)
    outcomes = [
        try_relation(relation, function, inputs, reference=reference, batch_sizes=sizes, seed=seed)
        for relation in asked
    ]
    broken = tuple(outcome for outcome in outcomes if outcome.rows_differ)
    if broken:
        raise NotBatchInvariant(broken)
    return {outcome.relation: outcome.rows for outcome in outcomes}


def _sentence(outcome: Outcome) -> str:
    first = outcome.first
    assert first is not None
    output = f" of output {first.output}" if first.output else ""
    moved = f" (row {first.reference_row} there)" if first.row != first.reference_row else ""
    return (
        f"{outcome.relation}: at batch size {first.batch_size}, row {first.row}{output} does not "
        f"equal its result in the call of all rows{moved}: "
        f"{_differ(first.elements_differ, first.elements, 'element', first.max_ulp)} "
        f"({str(first.dtype).removeprefix('torch.')}); "
        f"{_differ(outcome.rows_differ, outcome.rows, 'compared row', outcome.max_ulp)}"
    )


def _differ(number: int, total: int, noun: str, max_ulp: int) -> str:
    """`1 of 8 elements differs by up to 1 ULP`."""
    differ = verb(number, "differs", "differ")
    return f"{number} of {count(total, noun)} {differ} by up to {count(max_ulp, 'ULP')}"


def _check_relations(relations: tuple[str, ...]) -> None:
    if not relations:
        raise UsageError("Name at least one relation: without any, the check cannot fail.")
    for relation in relations:
        if relation in REQUEST_RELATIONS:
            raise UsageError(
                f"Relation {relation!r} is about whole requests, which a function of rows does "
                f"not have: use {', '.join(ROW_RELATIONS)}, or `detcheck ops` for attention."
            )
        if relation not in ROW_RELATIONS:
            raise UsageError(
                f"Unknown relation {relation!r}: known are {', '.join(ROW_RELATIONS)}."
            )


def _check_inputs(inputs: Tensors) -> None:
    if not inputs:
        raise UsageError("Give at least one input tensor whose first dimension is the batch.")
    for x in inputs:
        if not isinstance(x, torch.Tensor):
            raise UsageError(
                f"Inputs are tensors whose first dimension is the batch, not {type(x).__name__}: "
                "let the function close over everything else."
            )
    sizes = {x.shape[0] if x.dim() else None for x in inputs}
    if len(sizes) > 1 or None in sizes:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise UsageError(
            f"Inputs of shapes {shapes} do not share a batch as their first dimension: let the "
            "function close over the tensors that all rows share."
        )
    if inputs[0].shape[0] < 2:
        raise UsageError(
            f"A batch of {inputs[0].shape[0]} has nothing in it to vary, so the check could not "
            "fail: give at least two rows."
        )
    if all(torch.equal(x, x[:1].expand_as(x)) for x in inputs):
        raise UsageError(
            "All rows of the inputs are equal, so exchanging them changes nothing: give rows "
            "that differ."
        )


def _check_outputs(outputs: Tensors) -> None:
    """Raises UsageError if the outputs could not differ, however broken the function is."""
    if not any(output.numel() for output in outputs):
        raise UsageError("The function returned no elements: there is nothing to compare.")
    floats = [output for output in outputs if output.is_floating_point()]
    if len(floats) == len(outputs) and all(output.isnan().all() for output in floats):
        raise UsageError("The function returned only NaN, which hides every difference.")
    if all(torch.equal(output, output[:1].expand_as(output)) for output in outputs):
        raise UsageError(
            "The function returned the same for every row, so the check could not fail: give "
            "inputs whose results differ."
        )


def _checked_sizes(sizes: Sequence[int], rows: int) -> tuple[int, ...]:
    for size in sizes:
        if not 1 <= size < rows:
            raise UsageError(
                f"Batch sizes must lie between 1 and {rows - 1}, below the "
                f"{count(rows, 'row')} given, not {size}."
            )
    if not sizes:
        raise UsageError("Give at least one batch size, or leave `batch_sizes` out.")
    return tuple(sizes)
