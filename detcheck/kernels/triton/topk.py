"""The largest or smallest entries of rows on the GPU, the first of equal entries before the others.

PyTorch chooses its kernel by the number of rows, and equal entries may then come in another order.
A router of experts in bfloat16 has equal entries often enough to matter.
"""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.rows import FLOATS, RowCall, as_rows, first_call, kept_call


@triton.jit
def _sortable(x, LARGEST: tl.constexpr, ACC: tl.constexpr):
    """Whole numbers in the order of floats, the wanted ones largest; a NaN is the largest float."""
    x = x.to(ACC)
    x = tl.where(x == 0, 0.0, x)  # both zeros are equal
    bits = x.to(tl.int64 if tl.float64 == ACC else tl.int32, bitcast=True)
    lowest = -(2**63) if tl.float64 == ACC else -(2**31)
    # Of negative floats all bits but the sign are turned round, so that they grow with the number.
    keys = tl.where(bits < 0, (~bits) | lowest, bits)
    keys = tl.where(x != x, -(lowest + 1), keys)  # noqa: PLR0124  (true of NaN alone)
    return keys if LARGEST else ~keys


@triton.jit
def topk_kernel(
    x, values, indices, length, stride, K: tl.constexpr, LARGEST: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """values and indices (rows, K) of the K first entries of x's rows (rows, length).

    One program a row. The entry after the last one is the best of those that come after it in the
    order (value, index), so no entry has to be taken out.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    wide: tl.constexpr = tl.int64 if tl.float64 == ACC else tl.int32
    lowest: tl.constexpr = -(2**63) if tl.float64 == ACC else -(2**31)
    last = tl.full((), -(lowest + 1), dtype=wide)
    last_index = tl.full((), -1, dtype=tl.int32)
    for k in range(K):
        best = tl.full((), lowest, dtype=wide)
        best_index = tl.full((), 0, dtype=tl.int32) + length
        for start in range(0, length, BLOCK):
            index = start + entries
            inside = index < length
            keys = _sortable(tl.load(x + index, mask=inside, other=0.0), LARGEST, ACC)
            after = inside & ((keys < last) | ((keys == last) & (index > last_index)))
            top = tl.max(tl.where(after, keys, lowest), axis=0)
            first = tl.min(tl.where(after & (keys == top), index, length), axis=0)
            better = (first < length) & ((top > best) | (best_index == length))
            best = tl.where(better, top, best)
            best_index = tl.where(better, first, best_index)
        tl.store(values + row * K + k, tl.load(x + best_index))
        tl.store(indices + row * K + k, best_index.to(tl.int64))
        last = best
        last_index = best_index


def topk(
    x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """aten::topk: values and int64 indices along `dim`, in order whether `sorted` or not.

    Whole numbers run as stock.
    """
    size = x.shape[dim] if x.dim() else 1
    if x.dtype not in FLOATS or x.dim() == 0 or not 0 < k <= size:
        shape = [k if index == dim % x.dim() else n for index, n in enumerate(x.shape)]
        out = x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)
        return torch.topk(x, k, dim, largest, sorted, out=out)
    dim %= x.dim()
    kind = ("topk", k, dim, largest, x.shape, x.stride(), x.dtype, x.get_device())
    kept = kept_call(kind)
    if kept is not None:
        values, indices = kept(x)
    else:
        sizes = [*(n for index, n in enumerate(x.shape) if index != dim), k]
        if x.numel() == 0:
            return x.new_empty(sizes), x.new_empty(sizes, dtype=torch.int64)
        rows = as_rows(x, [dim])
        named = {"K": k, "LARGEST": largest}
        outputs = ((sizes, x.dtype), (sizes, torch.int64))
        call = RowCall.over(topk_kernel, rows, outputs, named, wide=x.dtype == torch.float64)
        values, indices = first_call(kind, call, x, rows)
    return values.movedim(-1, dim), indices.movedim(-1, dim)
