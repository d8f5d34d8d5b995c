"""Attention for operands of one kind: which kernel serves them, and how it is launched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log2, prod, sqrt

import torch
import triton

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import attention_layout
from detcheck.kernels.triton.attention_kernels import attention_kernel, merge_kernel
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.attention_shapes import Shape, block_d
from detcheck.kernels.triton.launch import NUMERICS, Repeated, processors, room

MERGE_ROWS = 4
"""Rows of the result that one program merges."""
MOST_PARTIAL_BYTES = 1 << 28
"""Of memory for partial results. If splits side by side needed more, they are computed in turn."""
LOG2_E = log2(2.718281828459045)

States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query (batch, heads, q, dim), key and value (batch, kv_heads, k, dim)."""
Sinks = torch.Tensor | None
Call = Callable[[States, Sinks], torch.Tensor]
"""Returns (batch, q, heads, dim)."""

Tensors = tuple[torch.Tensor, ...]
Numbers = tuple[int, ...]
Launch = Callable[[Tensors, Numbers], None]
"""Launches a kernel on tensors and numbers."""


class AttentionForm:
    """Attention with one shape of the kernel, for operands that differ in their lengths alone."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scores: Scores,
        shape: Shape,
    ):
        """Operands as in `attention`, contiguous along dim; only their layout is kept."""
        heads, dim = query.shape[1], query.shape[3]
        group = heads // key.shape[1]
        group_rows = triton.next_power_of_2(group)
        self._heads, self._kv_heads, self._dim = heads, key.shape[1], dim
        self._block_q = shape.rows // group_rows
        """Positions of a tile."""
        self._few = 2 * processors(query.device)
        """Programs below which splits get programs of their own."""
        constant = (*_factors(scores, dim), *strides(query), *strides(key), *strides(value))
        both = {
            "PACKED": layout.packed, "HAS_STARTS": layout.starts is not None,
            "HAS_ORIGINS": layout.has_origins, "HAS_SINKS": scores.sinks is not None, **NUMERICS,
        }  # fmt: skip
        sizes = {"DIM": dim, "BLOCK_D": block_d(dim)}
        named = {
            "GROUP": group, "GROUP_ROWS": group_rows, **sizes, "ROWS": shape.rows,
            "BLOCK_N": shape.block_n, "SPLIT_BLOCKS": attention_layout.SPLIT // shape.block_n,
            "HAS_FIRSTS": layout.has_firsts, "CAPPED": scores.softcap is not None,
            "num_warps": shape.num_warps, "num_stages": shape.num_stages, **both,
        }  # fmt: skip
        self._in_turn, self._side_by_side = (
            Repeated(attention_kernel, constant, {**named, "PARALLEL": parallel})
            for parallel in (False, True)
        )
        merging = {"HEADS": heads, "ROWS": MERGE_ROWS, "SPLIT": attention_layout.SPLIT}
        self._merge = Repeated(merge_kernel, (), {**merging, **sizes, **both, "num_warps": 4})

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        parallel: bool | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, q, heads, dim). `parallel` as in `attention`."""
        return self.call(query, key, layout, parallel)((query, key, value), sinks)

    def call(
        self, query: torch.Tensor, key: torch.Tensor, layout: Layout, parallel: bool | None = None
    ) -> Call:
        """How operands of these lengths are attended to. `parallel` as in `attention`."""
        batch, _, q_size, _ = query.shape
        k_size = key.shape[2]
        slots = layout.slots(q_size, self._block_q)
        splits = layout.splits(k_size)
        out = batch, q_size, self._heads, self._dim
        if parallel is None:
            partial_bytes = 4 * splits * prod(out[:3]) * (self._dim + 2)
            few = slots * self._kv_heads < self._few
            parallel = few and partial_bytes <= MOST_PARTIAL_BYTES
        schedule = layout.schedule(q_size, self._block_q)
        firsts = layout.firsts if schedule is None else schedule.firsts
        absent = query.new_empty(1)  # an address for what the kernel does not read
        slots_of = None if schedule is None else schedule.slots
        rest = tuple(
            absent if x is None else x.contiguous()
            for x in (slots_of, layout.starts, layout.origins, firsts)
        )
        grid = slots, self._kv_heads, splits
        if splits == 1 or layout.has_firsts or not parallel:
            # Rows of left padding have no program. Every other row is written.
            zeros = layout.starts is not None
            numbers = q_size, k_size, batch * q_size, 0
            launch = partial(self._in_turn, (*grid[:2], 1))
            return _in_turn(launch, room(query, out), rest, numbers, zeros=zeros)
        row_splits = absent if schedule is None else schedule.row_splits
        rows = prod(out[:3])
        parts = splits * rows
        return _side_by_side(
            partial(self._side_by_side, grid),
            partial(self._merge, (-(-rows // MERGE_ROWS), 1, 1)),
            (room(query, out), room(query, (parts * (self._dim + 2),), torch.float32)),
            (rest, (row_splits, *rest[1:3])),
            ((q_size, k_size, batch * q_size, parts), (rows, q_size, k_size, parts)),
        )


def _in_turn(
    launch: Launch,
    allocate: Callable[[], torch.Tensor],
    rest: Tensors,
    numbers: Numbers,
    *,
    zeros: bool,
) -> Call:
    """One program computes all splits of a tile.

    `rest` are slots, starts, origins and firsts; `zeros` is true if some rows have no program.
    """

    def call(states: States, sinks: Sinks) -> torch.Tensor:
        out = allocate()
        if zeros:
            out.zero_()
        launch((*states, out, out, *rest, out if sinks is None else sinks), numbers)
        return out

    return call


def _side_by_side(
    launch: Launch,
    merge: Launch,
    rooms: tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]],
    rest: tuple[Tensors, Tensors],
    numbers: tuple[Numbers, Numbers],
) -> Call:
    """Each split of a tile has a program of its own, and another kernel merges the results.

    `rooms` allocate the results and the partial results; `rest` and `numbers` are those of both
    kernels.
    """
    allocate, allocate_partial = rooms

    def call(states: States, sinks: Sinks) -> torch.Tensor:
        out, partial_results = allocate(), allocate_partial()
        last = out if sinks is None else sinks
        launch((*states, out, partial_results, *rest[0], last), numbers[0])
        merge((partial_results, out, *rest[1], last), numbers[1])
        return out

    return call


def _factors(scores: Scores, dim: int) -> tuple[float, float]:
    """The factor of scores, in powers of 2, and that of products before they are capped."""
    scaling = 1 / sqrt(dim) if scores.scaling is None else float(scores.scaling)
    if scores.softcap is None:
        return scaling * LOG2_E, 1.0
    return scores.softcap * LOG2_E, scaling / scores.softcap


def strides(x: torch.Tensor) -> tuple[int, ...]:
    """Strides of (batch, heads, length); 0 between the entries of a batch of one."""
    return x.stride()[:3] if len(x) > 1 else (0, *x.stride()[1:3])
