"""The relations of batch invariance, tried on any callable whose tensors have the batch first.

A relation is a set of variants of one call. A variant has other inputs, and maps rows of its
outputs to the rows of the reference call that they must equal bit for bit. All data are seeded,
and each relation changes one property of the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from detcheck.errors import UsageError
from detcheck.probes.bits import row_ulps, ulps
from detcheck.text import count

USUAL_RELATIONS = ("repeat", "batch-size", "position", "neighbours")
"""Relations that any function of a batch of rows can be held to."""
ROW_RELATIONS = (*USUAL_RELATIONS, "layout")
"""The same and `layout`, for functions that take tensors of any strides."""
REQUEST_RELATIONS = ("padding", "chunking", "prefill-decode", "prefix-cache")
"""Relations about whole requests, for attention only."""
RELATIONS = (*ROW_RELATIONS, *REQUEST_RELATIONS)
BOUNDARY_ROWS = (
    *(1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 44, 45, 63, 64, 65, 127, 128, 129),
    *(255, 256, 257, 511, 512, 513, 1023, 1024, 1025),
)
"""Batch sizes at which libraries are known to change kernels."""
SIGNATURE_ROWS = 8
"""Leading rows whose bits decide whether batch sizes are of one class."""
LAYOUT_ROWS = (1, 5)
"""Batch sizes, besides the whole batch, that are tried in each memory layout."""
_REPEATS = 3
_PROBED_ROWS = 4
"""Rows whose neighbours are exchanged."""

Function = Callable[..., Any]
Tensors = tuple[torch.Tensor, ...]
Layout = Callable[[torch.Tensor], torch.Tensor]
"""Takes a contiguous tensor; returns equal values that lie otherwise in memory."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Another call: `rows` of its outputs must equal `reference_rows` of the reference's."""

    inputs: Tensors
    rows: range | list[int]
    reference_rows: range | list[int]
    layout: Layout | None = None
    """Gives the inputs another layout in memory; contiguous if None."""

    @property
    def batch_size(self) -> int:
        """Rows of the call."""
        return self.inputs[0].shape[0]


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that differs from its reference row."""

    batch_size: int
    row: int
    """Its index in the batch of `batch_size`."""
    reference_row: int
    """Its index in the reference call."""
    output: int
    """Index among the outputs."""
    elements: int
    elements_differ: int
    max_ulp: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Outcome:
    """The comparison under one relation."""

    relation: str
    rows: int = 0
    """Rows compared."""
    rows_differ: int = 0
    max_ulp: int = 0
    first: Difference | None = None
    classes: tuple[tuple[int, ...], ...] = ()
    """Batch sizes grouped by the bits of their first rows; for `batch-size` only."""


def batch_sizes_up_to(rows: int) -> tuple[int, ...]:
    """The boundary batch sizes below `rows`."""
    return tuple(size for size in BOUNDARY_ROWS if size < rows)


def try_relation(
    relation: str,
    function: Function,
    inputs: Tensors,
    *,
    reference: Tensors | None = None,
    batch_sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> Outcome:
    """Try one of ROW_RELATIONS on `function(*inputs)`; every input has the batch first.

    `reference` is `run(function, inputs)` if the caller has it already. `batch_sizes` must be
    smaller than the batch of `inputs`; by default the boundary sizes are tried. Raises UsageError
    for an unknown relation, or if the outputs do not have the batch first.
    """
    whole = run(function, inputs) if reference is None else reference
    outcome = Outcome(relation)
    signatures: dict[int, list[bytes]] = {}
    for variant in variants(relation, inputs, batch_sizes, seed):
        outputs = run(function, variant.inputs, variant.layout)
        _check_alike(outputs, whole, variant.batch_size)
        outcome = compare(outcome, variant, outputs, whole)
        if relation == "batch-size":
            _sign(signatures, variant, outputs)
    if relation == "batch-size":
        signatures[inputs[0].shape[0]] = _signature(whole, range(SIGNATURE_ROWS))
        outcome = replace(outcome, classes=_classes(signatures))
    return outcome


def variants(
    relation: str, inputs: Tensors, batch_sizes: Sequence[int] | None = None, seed: int = 0
) -> Iterator[Variant]:
    """The calls that make up a relation."""
    rows = inputs[0].shape[0]
    if relation == "repeat":
        for _ in range(_REPEATS):
            yield Variant(inputs, range(rows), range(rows))
    elif relation == "batch-size":
        sizes = batch_sizes_up_to(rows) if batch_sizes is None else batch_sizes
        yield from _smaller_batches(inputs, sizes)
    elif relation == "position":
        yield from _rotations(inputs)
    elif relation == "neighbours":
        yield from _other_neighbours(inputs, seed)
    elif relation == "layout":
        yield from _other_layouts(inputs)
    else:
        raise UsageError(
            f"Unknown relation {relation!r} for rows: known are {', '.join(ROW_RELATIONS)}."
        )


def _smaller_batches(inputs: Tensors, sizes: Sequence[int]) -> Iterator[Variant]:
    """Batches of the first rows; of a small size as many as the signature needs."""
    rows = inputs[0].shape[0]
    for size in sizes:
        for start in range(0, max(1, min(rows, SIGNATURE_ROWS)), size):
            if start + size <= rows:
                part = tuple(x[start : start + size] for x in inputs)
                yield Variant(part, range(size), range(start, start + size))


def _rotations(inputs: Tensors) -> Iterator[Variant]:
    """The same rows, each at another position in a batch of the same size."""
    rows = inputs[0].shape[0]
    for shift in sorted({1, rows // 2, rows - 1} - {0}):
        moved = tuple(x.roll(shift, 0) for x in inputs)
        yield Variant(moved, [(row + shift) % rows for row in range(rows)], range(rows))


def _other_neighbours(inputs: Tensors, seed: int) -> Iterator[Variant]:
    """The probed row at its position, all others replaced: copies of it, zeros, large noise."""
    rows = inputs[0].shape[0]
    generator = torch.Generator().manual_seed(seed)
    for probe in sorted({0, 1, rows // 2, rows - 1})[:_PROBED_ROWS]:
        for fill in (_copies, torch.zeros_like, lambda x: _noise(x, generator)):
            others = tuple(
                fill(x[probe : probe + 1].expand_as(x)) if fill is _copies else fill(x)
                for x in inputs
            )
            for x, original in zip(others, inputs, strict=True):
                x[probe] = original[probe]
            yield Variant(others, [probe], [probe])


def _other_layouts(inputs: Tensors) -> Iterator[Variant]:
    """All rows and few of them, in each layout; the reference is contiguous."""
    rows = inputs[0].shape[0]
    for layout in LAYOUTS.values():
        for size in sorted({*LAYOUT_ROWS, rows}):
            if size <= rows:
                part = tuple(x[:size] for x in inputs)
                yield Variant(part, range(size), range(size), layout)


def _batch_innermost(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def _rows_apart(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((x, torch.zeros_like(x)), 1)[:, 0]


def _elements_apart(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((x, torch.zeros_like(x)), -1)[..., 0]


def _unaligned(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((x.new_zeros(3), x.flatten()))[3:].view(x.shape)


LAYOUTS: dict[str, Layout] = {
    "batch innermost": _batch_innermost,
    "rows apart": _rows_apart,
    "elements apart": _elements_apart,
    "unaligned": _unaligned,
}


def _copies(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values far above those of `x`; integers, which may be indices, are only shuffled."""
    if not x.is_floating_point():
        return x[torch.randperm(x.shape[0], generator=generator).to(x.device)]
    return (torch.randn(x.shape, generator=generator).to(x.device) * 64).to(x.dtype)


def run(function: Function, inputs: Tensors, layout: Layout | None = None) -> Tensors:
    """Outputs of one call on copies of `inputs`, so that a function may write on its inputs.

    The copies are contiguous, or have the given layout.
    Raises UsageError if an output is no tensor or does not have the batch first.
    """
    copies = tuple(x.detach().clone(memory_format=torch.contiguous_format) for x in inputs)
    result = function(*(copies if layout is None else map(layout, copies)))
    if isinstance(result, dict):
        result = tuple(result.values())
    outputs = (result,) if isinstance(result, torch.Tensor) else result
    if not isinstance(outputs, tuple | list) or not outputs:
        raise UsageError(f"The function must return tensors, not {type(result).__name__}.")
    rows = inputs[0].shape[0]
    for output in outputs:
        if not isinstance(output, torch.Tensor) or not output.dim() or output.shape[0] != rows:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output)
            raise UsageError(
                f"The function was given {count(rows, 'row')} and returned {shape}: the first "
                "dimension of every output must be the batch."
            )
    return tuple(output.detach() for output in outputs)


def _check_alike(outputs: Tensors, whole: Tensors, rows: int) -> None:
    """Raises UsageError if number, dtypes or shapes of outputs in a batch of `rows` change."""
    kinds = [[(str(x.dtype), tuple(x.shape[1:])) for x in each] for each in (outputs, whole)]
    if kinds[0] != kinds[1]:
        few, all_rows = (
            ", ".join(f"{dtype.removeprefix('torch.')} {shape}" for dtype, shape in kind)
            for kind in kinds
        )
        raise UsageError(
            f"A row's result is {few} in a batch of {rows} and {all_rows} in the whole batch: "
            "number, dtype and shape of the outputs must not depend on the batch."
        )


def compare(outcome: Outcome, variant: Variant, outputs: Tensors, whole: Tensors) -> Outcome:
    """`outcome` with the rows of one more call added."""
    distances = torch.stack(
        [
            row_ulps(_pick(actual, variant.rows), _pick(expected, variant.reference_rows)).cpu()
            for actual, expected in zip(outputs, whole, strict=True)
        ]
    )
    by_row = distances.amax(0)
    first = outcome.first
    if first is None and by_row.any():
        first = _first_difference(variant, outputs, whole, distances)
    return replace(
        outcome,
        rows=outcome.rows + len(by_row),
        rows_differ=outcome.rows_differ + int(by_row.count_nonzero()),
        max_ulp=max(outcome.max_ulp, int(by_row.max()) if len(by_row) else 0),
        first=first,
    )


def _first_difference(
    variant: Variant, outputs: Tensors, whole: Tensors, distances: torch.Tensor
) -> Difference:
    index = int(distances.amax(0).gt(0).nonzero()[0])
    output = int(distances[:, index].gt(0).nonzero()[0])
    row, reference_row = variant.rows[index], variant.reference_rows[index]
    row_distances = ulps(outputs[output][row], whole[output][reference_row])
    return Difference(
        variant.batch_size,
        row,
        reference_row,
        output,
        row_distances.numel(),
        int(row_distances.count_nonzero()),
        int(row_distances.max()),
        outputs[output].dtype,
    )


def _pick(x: torch.Tensor, rows: range | list[int]) -> torch.Tensor:
    if isinstance(rows, range):
        return x[rows.start : rows.stop]
    return x[torch.tensor(rows, device=x.device)]


def _sign(signatures: dict[int, list[bytes]], variant: Variant, outputs: Tensors) -> None:
    """Add a batch's share of the first rows to the signature of its size."""
    wanted = range(min(variant.batch_size, SIGNATURE_ROWS - variant.reference_rows[0]))
    signatures.setdefault(variant.batch_size, []).extend(_signature(outputs, wanted))


def _signature(outputs: Tensors, rows: range) -> list[bytes]:
    """The bytes of each of the rows, one item a row."""
    count = min(len(rows), outputs[0].shape[0])
    flat = [x[:count].reshape(count, math.prod(x.shape[1:])).contiguous().cpu() for x in outputs]
    return [
        b"".join(x[row].reshape(-1).view(torch.uint8).numpy().tobytes() for x in flat)
        for row in range(count)
    ]


def _classes(signatures: dict[int, list[bytes]]) -> tuple[tuple[int, ...], ...]:
    """Batch sizes whose first rows agree, the class of the largest size last."""
    shared = min(map(len, signatures.values()))
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for size, rows in sorted(signatures.items()):
        groups.setdefault(tuple(rows[:shared]), []).append(size)
    return tuple(tuple(group) for group in groups.values())
