"""Sums that run from the first term to the last: zeros at either end do not change them.

A model's own attention code multiplies and sums over all keys of a batch, the masked ones included.
Their weights are exact zeros, but stock kernels sum in blocks and vectors, whose bounds move with
the number of keys. Here term k is added to the sum of terms 0 to k-1, for all entries at once. So
padding on either side changes nothing, nor does a decoding step instead of a prefill.

In float32 most products go through the stock kernel, in calls of which it is known that they have
the same bits: see `short_sums.py`. The others cost more than the stock product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detcheck.kernels.cpu import short_sums

WIDEST_HEAD = 1024
"""Products whose sums and columns are both longer are of weights, not of attention's heads."""
PART_ENTRIES = 1 << 20
"""Sums that are computed together: 4 MiB of float32, which stay in the cache of a core."""
_SUMMED_AS = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
"""The dtype of the sums, by dtype of the operands."""


def can_multiply(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True if `multiply` computes this product: floats of one dtype, and heads of usual size."""
    inner, columns = right.shape[1:]
    return left.dtype in _SUMMED_AS and min(inner, columns) <= WIDEST_HEAD


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, M, K) x (B, K, N) to (B, M, N); each sum runs over K in order, in float32 or float64.

    An entry depends only on its row of `left` and its column of `right`. Zeros in the row at either
    end of K do not change it.
    """
    if left.is_cuda:
        from detcheck.kernels.triton import in_order

        return in_order.multiply(left, right)
    summed_as = _SUMMED_AS[left.dtype]
    left_wide, right_wide = left.to(summed_as), right.to(summed_as)
    total = short_sums.multiply(left_wide, right_wide, multiply_by_loop)
    if total is None:
        total = multiply_by_loop(left_wide, right_wide)
    return total.to(left.dtype).contiguous()


def multiply_by_loop(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`multiply` in float32 or float64, term by term."""
    rows = left.permute(2, 0, 1).contiguous()
    columns = right.permute(1, 0, 2).contiguous()
    total = rows.new_zeros((left.shape[0], left.shape[1], right.shape[2]))
    for part, each_row, each_column in _parts(total, rows[..., None], columns[:, :, None]):
        for row, column in zip(each_row.unbind(), each_column.unbind(), strict=True):
            part.addcmul_(row, column)
    return total


def _parts(
    total: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Parts of `total` (B, M, N) that stay in the cache, with their rows and columns.

    rows (K, B, M, 1), columns (K, B, 1, N). The order of each sum is the same in any part.
    """
    batch, length, width = total.shape
    together = max(1, PART_ENTRIES // max(1, length * width))
    at_once = max(1, length if together > 1 else PART_ENTRIES // max(1, width))
    for b in range(0, batch, together):
        for m in range(0, length, at_once):
            entries, lines = slice(b, b + together), slice(m, m + at_once)
            yield total[entries, lines], rows[:, entries, lines], columns[:, entries]


class InOrder(torch.autograd.Function):
    """`multiply` with the gradients of a product, whatever the mode overrides."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        return multiply(left, right)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = ctx.saved_tensors
        return grad @ right.mT, left.mT @ grad


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dim of a float tensor of any shape, in the dtype of `x`.

    Entries at either end whose exponential is zero, such as masked keys, do not change the others.
    """
    if x.is_cuda:
        from detcheck.kernels.triton import in_order

        on_gpu: torch.Tensor = in_order.Softmax.apply(x)
        return on_gpu
    scores = x.to(_SUMMED_AS[x.dtype])
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    total = weights.cumsum(-1)[..., -1:]  # the stock kernel adds one entry after another
    shares = weights / total if weights.requires_grad else weights.div_(total)
    return shares.to(x.dtype)
