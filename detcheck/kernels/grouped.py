"""Grouped products, by whichever product of two matrices a device has: shared by the CPU and GPUs.

A grouped product (`aten::_grouped_mm`) is many products whose matrices share one tensor, cut at
`offs`: with experts, tokens are sorted by expert and multiplied by the weight of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GroupedProduct:
    """aten::_grouped_mm by the products of a device."""

    mm: Product
    bmm: Product
    tokens: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """(T, K) x (E, K, N), cut at `offs`, to (T, N)."""

    def __call__(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        offs: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """(T, K) x (E, K, N) to (T, N), with tokens cut by expert at `offs` (E,) int32.

        A token's bits do not depend on the other tokens. Of the other forms, (E, M, K) x (E, K, N)
        is `bmm`, and those of `by_group` are computed group by group. Raises NotImplementedError
        for a bias.
        """
        if bias is not None:
            raise NotImplementedError("grouped products with a bias have no batch-invariant kernel")
        if offs is None:
            out = self.bmm(left, right)
        elif (left.dim(), right.dim()) == (2, 3):
            out = self.tokens(left, right, offs)
        else:
            out = by_group(left, right, offs.tolist(), self.mm)
        return out.to(out_dtype or left.dtype)


def tokens_by_group(
    left: torch.Tensor, right: torch.Tensor, ends: list[int], product: Product
) -> torch.Tensor:
    """(T, K) x (G, K, N) to (T, N): row t by the matrix of its group; rows after the last get 0."""
    out = left.new_zeros((left.shape[0], right.shape[2]))
    for group, rows in enumerate(_spans(ends)):
        if rows.start < rows.stop:
            out[rows] = product(left[rows], right[group])
    return out


def by_group(
    left: torch.Tensor, right: torch.Tensor, ends: list[int], product: Product
) -> torch.Tensor:
    """The forms that gradients use, in which groups cut K or the columns.

    (M, T) x (T, N) to (G, M, N), and (G, M, K) x (K, T) to (M, T).
    """
    if left.dim() == 2:
        return torch.stack([product(left[:, span], right[span]) for span in _spans(ends)])
    parts = [product(each, right[:, span]) for each, span in zip(left, _spans(ends), strict=True)]
    return torch.cat(parts, dim=1)


def _spans(ends: list[int]) -> Iterator[slice]:
    return (slice(begin, end) for begin, end in pairwise([0, *ends]))
