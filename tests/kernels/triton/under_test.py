"""The Triton kernels as the tests use them.

Without a GPU they run in Triton's interpreter, which computes with numpy on CPU tensors. With one,
the same tests run on it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"

from detcheck.kernels.triton import (  # noqa: E402  (only if Triton is installed)
    attention,
    attention_layout,
    classes,
    configs,
    differentiable,
    fused_rows,
    grouped,
    linear,
    matmul,
    norm,
    ops,
    reduce,
    rotary,
    softmax,
    topk,
)

DOT_DTYPES = [torch.float32, torch.float16]
"""The interpreter's product of bfloat16 is wrong; on a GPU that dtype is tested too."""
if not INTERPRETED:
    DOT_DTYPES.append(torch.bfloat16)
ROW_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDED_DTYPES = ROW_DTYPES[: 2 if INTERPRETED else 3]
"""The interpreter cuts off what bfloat16 does not hold, instead of rounding it."""
WITH_FORMS_ON_GPU = [
    pytest.mark.usefixtures("forms_on_gpu"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported"),
]
"""Marks of tests of the fused forms: NumPy, which the interpreter computes with, warns."""

__all__ = [
    "DEVICE", "DOT_DTYPES", "INTERPRETED", "ROUNDED_DTYPES", "ROW_DTYPES", "WITH_FORMS_ON_GPU",
    "attention", "attention_layout", "classes", "configs", "differentiable", "fused_rows",
    "grouped", "in_segments", "linear", "matmul", "norm", "ops", "random", "reduce", "rotary",
    "rows_differ", "softmax", "topk",
]  # fmt: skip


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A seeded normal tensor on the device under test."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def in_segments(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    tile: configs.Tile,
    length: int = 64,
) -> torch.Tensor:
    """A planted fault: a product whose sum over K is cut into segments, which are added up."""
    pairs = zip(left.split(length, 2), right.split(length, 1), strict=True)
    parts = [matmul.product(a.contiguous(), b.contiguous(), None, tile) for a, b in pairs]
    total = torch.stack(parts).sum(0)
    return total if bias is None else total + bias


def rows_differ(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[str]:
    """Relations between calls under which the first row of `x` (rows, …) changes its result."""
    expected = function(x[:1])[0]
    rows = len(x)
    others = x.flip(0).clone()
    others[0] = x[0]
    zeros = torch.zeros_like(x)
    zeros[0] = x[0]
    calls = {
        "repeat": (x[:1], 0),
        **{f"batch-size {count}": (x[:count], 0) for count in (2, 3, 17, rows) if count <= rows},
        "position": (x.roll(rows - 1, 0), rows - 1),
        "neighbours": (others, 0),
        "padding": (zeros, 0),
    }
    return [
        name
        for name, (batch, row) in calls.items()
        if not torch.equal(function(batch)[row], expected)
    ]
