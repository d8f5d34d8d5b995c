"""`torch.matmul` of a batch of matrices by one matrix or vector, as one product of all their rows.

PyTorch computes it so only if the batch lies in memory as rows of one matrix. It takes `bmm` for
others, such as a transpose or a slice of several requests. The same slice of one request may lie
so, and `bmm` sums in another order than `mm`. So here the batch is copied first if need be.

Batches of matrices by a parameter of several, such as one a head, are products by copies of it: for
a batch of one PyTorch would take the parameter as it is, whose products have calls of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from detcheck.kernels.cpu.matmul import is_weight

_KEY = "CompositeImplicitAutograd"
_SETS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_stock_matmul = torch.library.get_kernel("aten::matmul", "CPU").call_boxed
_stock_matmul_out = torch.library.get_kernel("aten::matmul.out", "CPU").call_boxed


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of tensors of any shapes that `torch.matmul` takes, with gradients."""
    left, right = _prepared(left, right)
    product: torch.Tensor = _stock_matmul(_SETS, left, right)
    return product


def matmul_out(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`matmul` into `out`, which is returned."""
    left, right = _prepared(left, right)
    product: torch.Tensor = _stock_matmul_out(_SETS, left, right, out=out)
    return product


def _prepared(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The operands as the same op takes them for any batch."""
    if min(left.dim(), right.dim()) > 2:
        return _repeatable(left, right), _repeatable(right, left)
    return (left, right) if left.dim() == 2 else _foldable(left, right)


def _repeatable(matrices: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Matrices of three and more dims; a copy if they are a parameter that a batch repeats."""
    if not is_weight(matrices):
        return matrices
    repeated = 1 in matrices.shape[:-2] or 0 in matrices.stride()[:-2]
    return matrices.clone() if repeated or matrices.dim() < other.dim() else matrices


def _foldable(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The operands with a batch of matrices on the left-hand side, as rows of one matrix in memory.

    Operands without such a batch are returned as they are.
    """
    if left.dim() == 1 and right.dim() > 2:
        left, right = right.mT, left
    if not _folds(left):
        left = left.clone(memory_format=torch.contiguous_format)
    return left, right


def _folds(batch: torch.Tensor) -> bool:
    """PyTorch's own condition, in which the stride of a dim of size 1 counts too."""
    sizes, strides = batch.shape, batch.stride()
    return all(strides[at] == strides[at + 1] * sizes[at + 1] for at in range(len(sizes) - 2))


def fold_batches() -> Callable[[], None]:
    """Let `torch.matmul` and `@` fold every batch; returns what restores PyTorch's own choice.

    The products themselves call `mm`, `mv` and `bmm`, whose kernels are overridden and counted.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid.*", category=UserWarning)
        library.impl("matmul", matmul, _KEY)
        library.impl("matmul.out", matmul_out, _KEY)
    return library._destroy
