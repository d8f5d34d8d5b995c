"""cuBLAS as a second source of batch-invariant products, for kinds that are proven.

cuBLAS picks a kernel by M, and a kernel that splits K adds up in another order. Without workspace
it cannot split K, so its kernels may all give the same bits on Hopper. That is tried, not assumed,
for each kind of product (N, K, dtype, settings): M is padded to a multiple of ROWS_STEP and cut
into slabs of MOST_ROWS, so that only a few shapes ever run, and each of these shapes must give the
same bits on data that cancel. A kind that fails is computed by Triton, for every M.

It is off unless the environment asks for it, before PyTorch creates its cuBLAS handles:

    DETCHECK_PRODUCTS=cublas CUBLAS_WORKSPACE_CONFIG=:16:8 CUBLASLT_WORKSPACE_SIZE=1

The choice is the environment's and not a matter of speed on the day, because the two sources give
different bits: a run must not change its answers with the timing of its first steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from detcheck.errors import UsageError
from detcheck.kernels.triton.classes import ProductKind, cancelling_operands
from detcheck.kernels.triton.launch import ALIGNMENT_BYTES, capturing

VARIABLE = "DETCHECK_PRODUCTS"
PINNED = {"CUBLAS_WORKSPACE_CONFIG": (":16:8",), "CUBLASLT_WORKSPACE_SIZE": ("0", "1")}
"""Values under which cuBLAS has no workspace to split K in."""
ROWS_STEP = 64
MOST_ROWS = 8192
HALF = (torch.bfloat16, torch.float16)

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(M, K) x (K, N) to (M, N)."""


def enabled() -> bool:
    """True if the environment asks for cuBLAS. Raises UsageError if it is not pinned as well."""
    if os.environ.get(VARIABLE, "") != "cublas":
        return False
    for name, values in PINNED.items():
        if os.environ.get(name) not in values:
            raise UsageError(
                f"{VARIABLE}=cublas needs {name}={values[-1]} in the environment too, set before "
                "the process starts: otherwise cuBLAS may split sums by the number of rows."
            )
    return True


def serves(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """True if cuBLAS computes (1, M, K) x (1, K, N) + bias, which it does for all M or for none.

    A linear layer without a bias, whose kind is proven. The first call of a kind proves it.
    """
    return (
        _enabled()
        and bias is None
        and len(left) == 1
        and left.dtype in HALF
        and left.is_cuda
        and right.stride(1) == 1
        and proven(_kind(left, right), settings())
    )


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(1, M, K) x (1, K, N) to (1, M, N), of a kind that `serves` accepts."""
    return by_shapes(left[0], right[0], stock)[None]


def by_shapes(left: torch.Tensor, right: torch.Tensor, multiply: Product) -> torch.Tensor:
    """(M, K) x (K, N) by calls of `multiply` whose M are multiples of ROWS_STEP up to MOST_ROWS."""
    rows, inner = left.shape
    out = []
    for first in range(0, rows, MOST_ROWS):
        slab = left[first : first + MOST_ROWS]
        whole = -(-len(slab) // ROWS_STEP) * ROWS_STEP
        aligned = slab.is_contiguous() and slab.data_ptr() % ALIGNMENT_BYTES == 0
        if whole > len(slab) or not aligned:
            slab = torch.cat((slab, slab.new_zeros((whole - len(slab), inner))))
        out.append(multiply(slab, right))
    return out[0][:rows] if len(out) == 1 else torch.cat(out)[:rows]


def stock(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """PyTorch's own product, past any override."""
    return torch.mm(left, right, out=left.new_empty((len(left), right.shape[1])))


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of PyTorch that choose among cuBLAS's kernels."""

    library: str
    reduced_bfloat16: bool
    reduced_float16: bool
    accumulate_float16: bool


def settings() -> Settings:
    """The settings now."""
    flags: Any = torch.backends.cuda.matmul
    return Settings(
        str(torch.backends.cuda.preferred_blas_library()),
        bool(flags.allow_bf16_reduced_precision_reduction),
        bool(flags.allow_fp16_reduced_precision_reduction),
        bool(getattr(flags, "allow_fp16_accumulation", False)),
    )


@cache
def proven(kind: ProductKind, settings: Settings, multiply: Product = stock) -> bool:
    """True if every shape that this kind may run with gives the same bits.

    Raises UsageError while a CUDA graph is captured: a kind has to be decided before.
    """
    del settings  # part of what the answer depends on
    if capturing():
        raise UsageError(
            "A CUDA graph is captured before products were tried: run one step without a graph "
            f"first, or unset {VARIABLE}."
        )
    return all(agrees for _, agrees in proof(kind, multiply))


def proof(kind: ProductKind, multiply: Product) -> list[tuple[int, bool]]:
    """(M, whether it gives the bits of the smallest shape), for each shape of a kind.

    The rows of one block are repeated, so each block of each shape must give the same result.
    """
    left, right = cancelling_operands(kind, rows=ROWS_STEP, columns=kind.columns)
    block, weight = left[0], right[0]
    expected = multiply(block, weight)
    repeated = block.repeat(MOST_ROWS // ROWS_STEP, 1)
    found = []
    for rows in range(ROWS_STEP, MOST_ROWS + 1, ROWS_STEP):
        blocks = multiply(repeated[:rows], weight).view(-1, *expected.shape)
        found.append((rows, bool((blocks == expected).all())))
    return found


def _kind(left: torch.Tensor, right: torch.Tensor) -> ProductKind:
    return ProductKind(
        right.shape[1], right.shape[2], left.dtype, transposed=True, device=left.device
    )


@cache
def _enabled() -> bool:
    return enabled()
