"""Batch-invariant grouped products on the CPU: each token by the weight of its expert.

The tokens of an expert are one call of `mm`, whose rows have the same bits for any number of rows
and at any place. So a token's bits do not depend on which experts the other tokens chose.
"""

from __future__ import annotations

import torch

from detcheck.kernels.cpu import matmul
from detcheck.kernels.grouped import GroupedProduct, tokens_by_group


def _tokens(left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    return tokens_by_group(left, right, offs.tolist(), matmul.mm)


grouped_mm = GroupedProduct(matmul.mm, matmul.bmm, _tokens)
KERNELS = {"_grouped_mm": grouped_mm}
"""Overrides by aten op."""
