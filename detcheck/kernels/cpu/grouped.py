"""Batch-invariant grouped products on the CPU: each token by the weight of its expert.

The tokens of an expert are one call of `mm`, whose rows have the same bits for any number of rows
and at any place. So a token's bits do not depend on which experts the other tokens chose.
"""

from __future__ import annotations

import torch

from detcheck.kernels.cpu import matmul
from detcheck.kernels.grouped import by_group, tokens_by_group


def grouped_mm(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::_grouped_mm: products of matrices that share one tensor, cut at `offs` (E,) int32.

    (T, K) x (E, K, N) to (T, N), with tokens cut by expert; (E, M, K) x (E, K, N) is `bmm`; the
    other forms are those of `by_group`. Raises NotImplementedError for a bias, as stock does.
    """
    if bias is not None:
        raise NotImplementedError("grouped products with a bias have no batch-invariant kernel")
    if offs is None:
        return matmul.bmm(left, right).to(out_dtype or left.dtype)
    forms = tokens_by_group if (left.dim(), right.dim()) == (2, 3) else by_group
    return forms(left, right, offs.tolist(), matmul.mm).to(out_dtype or left.dtype)


KERNELS = {"_grouped_mm": grouped_mm}
"""Overrides by aten op."""
