"""Sums that run from the first term to the last: zeros at either end do not change them.

A model's own attention code multiplies and sums over all keys of a batch, the masked ones included.
Their weights are exact zeros, but stock kernels sum in blocks and vectors, whose bounds move with
the number of keys. Here term k is added to the sum of terms 0 to k-1, for all entries at once. So
padding on either side changes nothing, nor does a decoding step instead of a prefill.

This costs about 3 to 10 times the stock product, which for attention is a small part of a model.
"""

from __future__ import annotations

from typing import Any

import torch

WIDEST_HEAD = 1024
"""Products whose sums and columns are both longer are of weights, not of attention's heads."""
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
    summed_as = _SUMMED_AS[left.dtype]
    rows = left.permute(2, 0, 1).to(summed_as, memory_format=torch.contiguous_format)
    columns = right.permute(1, 0, 2).to(summed_as, memory_format=torch.contiguous_format)
    total = rows.new_zeros((left.shape[0], left.shape[1], right.shape[2]))
    for row, column in zip(rows[..., None].unbind(), columns[:, :, None].unbind(), strict=True):
        total.addcmul_(row, column)
    return total.to(left.dtype)


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
    scores = x.to(_SUMMED_AS[x.dtype])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    total = weights.cumsum(-1)[..., -1:]  # the stock kernel adds one entry after another
    return (weights / total).to(x.dtype)
