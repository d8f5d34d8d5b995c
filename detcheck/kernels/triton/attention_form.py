"""Attention for operands of one kind: which kernel serves them, and how it is launched."""

from __future__ import annotations

from math import log2, sqrt

import torch
import triton

from detcheck.kernels.triton import attention_layout
from detcheck.kernels.triton.attention_kernels import attention_kernel, merge_kernel
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.attention_shapes import Shape, block_d
from detcheck.kernels.triton.launch import NUMERICS, Repeated, processors

MERGE_ROWS = 4
"""Rows of the result that one program merges."""
LOG2_E = log2(2.718281828459045)


class AttentionForm:
    """Attention with one shape of the kernel, for operands that differ in their lengths alone."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scaling: float | None,
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
        scale = (1 / sqrt(dim) if scaling is None else scaling) * LOG2_E
        constant = (scale, *strides(query), *strides(key), *strides(value))
        kind = {"PACKED": layout.packed, "HAS_STARTS": layout.starts is not None, **NUMERICS}
        sizes = {"DIM": dim, "BLOCK_D": block_d(dim)}
        named = {
            "GROUP": group, "GROUP_ROWS": group_rows, **sizes, "ROWS": shape.rows,
            "BLOCK_N": shape.block_n, "SPLIT_BLOCKS": attention_layout.SPLIT // shape.block_n,
            "num_warps": shape.num_warps, "num_stages": shape.num_stages, **kind,
        }  # fmt: skip
        self._in_turn, self._side_by_side = (
            Repeated(attention_kernel, constant, {**named, "PARALLEL": parallel})
            for parallel in (False, True)
        )
        merging = {"HEADS": heads, "ROWS": MERGE_ROWS, "SPLIT": attention_layout.SPLIT}
        self._merge = Repeated(merge_kernel, (), {**merging, **sizes, **kind, "num_warps": 4})

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        parallel: bool | None = None,
    ) -> torch.Tensor:
        """(batch, q, heads, dim). `parallel` as in `attention`."""
        batch, _, q_size, _ = query.shape
        k_size = key.shape[2]
        slots = layout.slots(q_size, self._block_q)
        splits = -(-(layout.max_k or k_size) // attention_layout.SPLIT)
        if parallel is None:
            parallel = slots * self._kv_heads < self._few
        shape = batch, q_size, self._heads, self._dim
        schedule = layout.schedule(q_size, self._block_q)
        table = schedule.slots if schedule else query
        starts = query if layout.starts is None else layout.starts.contiguous()
        lengths = q_size, k_size, batch * q_size
        if splits == 1 or not parallel:
            # Rows of left padding have no program. Every other row is written.
            out = query.new_empty(shape) if layout.starts is None else query.new_zeros(shape)
            operands = (query, key, value, out, out, out, out, table, starts)
            self._in_turn((slots, self._kv_heads, 1), operands, lengths)
            return out
        out = query.new_empty(shape)
        partial = self._partial(out, splits)
        operands = (query, key, value, out, *partial, table, starts)
        self._side_by_side((slots, self._kv_heads, splits), operands, lengths)
        rows = batch * q_size * self._heads
        row_splits = schedule.row_splits if schedule else query
        merge_grid = (-(-rows // MERGE_ROWS), 1, 1)
        self._merge(merge_grid, (*partial, out, row_splits, starts), (rows, q_size, k_size))
        return out

    def _partial(
        self, out: torch.Tensor, splits: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Room for the partial results of `splits` (best, total, acc), in one allocation."""
        rows = splits * out.numel() // self._dim
        padded = -(-rows // 4) * 4  # so that each part is aligned
        room = out.new_empty(padded * (self._dim + 2), dtype=torch.float32)
        acc, best, total = room.split((padded * self._dim, padded, padded))
        return best, total, acc


def strides(x: torch.Tensor) -> tuple[int, ...]:
    """Strides of (batch, heads, length); 0 between the entries of a batch of one."""
    return x.stride()[:3] if len(x) > 1 else (0, *x.stride()[1:3])
