"""The self-check of a kernels mode when it is entered: does a row alone equal the same in a batch?

It calls the public ops, so that it also finds an override that is installed but not reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from detcheck.kernels.overrides import ATTENTION_NAME
from detcheck.kernels.triton import why_unavailable

PASSED = "passed"


def self_check(calls: Mapping[str, Counter[str]]) -> str:
    """Check the op families in `calls` (family to its live call counter).

    Returns `passed`, or a sentence that names the op that differed or the override that was not
    reached.
    """
    for family, counter in calls.items():
        for check in _checks(family):
            before = counter.total()
            problem = check()
            if problem is None and counter.total() == before:
                problem = f"the {family} override was installed but calls do not reach it"
            if problem is not None:
                return problem
    return PASSED


def _checks(family: str) -> list[Callable[[], str | None]]:
    """The family's checks: on the CPU, and on the GPU if there are kernels for it."""
    if why_unavailable() is not None:
        return [CHECKS[family]]
    from detcheck.kernels.triton import self_check as cuda

    return [checks[family] for checks in (CHECKS, cuda.CHECKS) if family in checks]


def _matmul() -> str | None:
    """Products by a plain tensor and by a parameter, which may be packed."""
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = normal(1, 5, 1536).to(dtype), normal(2, 64, 1536).to(dtype)
        for each in (weight, _parameter(weight)):
            if not torch.equal(F.linear(rows, each)[:1], F.linear(rows[:1], each)):
                return (
                    f"matmul in {dtype} gives a row alone a different result than in a batch of 5"
                )
    return None


def _parameter(weight: torch.Tensor) -> torch.nn.Parameter:
    with torch.inference_mode(False):
        return torch.nn.Parameter(weight.clone(), requires_grad=False)


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention as transformers' models call it, three query heads to a key head; no mask.

    (B, heads, queries, dim) to (B, queries, heads, dim).
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module = torch.nn.Module()
    setattr(module, "num_key_value_groups", 3)  # noqa: B010  (a plain attribute to its type)
    function: Any = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    result: torch.Tensor = function(module, query, key, value, None)[0]
    return result


def depends_on_batch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """True if attention gives the third request of a batch another result than alone."""
    alone = attended(query[2:3], key[2:3], value[2:3])
    return not torch.equal(attended(query, key, value)[2:3], alone)


def _attention() -> str | None:
    query = normal(2, 4, 6, 1, 32)
    key, value = normal(8, 2, 4, 2, 40, 32)
    if depends_on_batch(query, key, value):
        return "attention gives a request alone a different result than in a batch of 4"
    return None


def _prefill() -> str | None:
    query = normal(7, 1, 6, 40, 64)
    key, value = normal(9, 2, 1, 2, 40, 64)
    whole = attended(query, key, value)
    for start in (0, 17, 39):
        stop = start + 1
        last = attended(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop])
        if not torch.equal(last, whole[:, start:stop]):
            return "attention gives a query of a prefill a different result than when it is decoded"
    return None


def _norm() -> str | None:
    return _row_alone("rsqrt", torch.rsqrt, normal(3, 70, 1).abs().bfloat16())


def _softmax() -> str | None:
    x = normal(4, 5, 64, 33)
    return _row_alone("softmax", lambda rows: rows.softmax(1), x)


def _reduce() -> str | None:
    x = normal(5, 3, 49152) * 100
    return _row_alone("sum", lambda rows: rows.sum(-1), x)


def _pointwise() -> str | None:
    x = normal(6, 5, 1000)
    return _row_alone("silu", F.silu, x)


def _row_alone(
    name: str, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> str | None:
    """None if each row of `x` (rows, …) gives the same alone as in `x`; else a sentence."""
    whole = function(x)
    for row in range(len(x)):
        if not torch.equal(function(x[row : row + 1].clone())[0], whole[row]):
            return f"{name} gives a row alone a different result than in a batch of {len(x)}"
    return None


@cache
def normal(seed: int, *shape: int) -> torch.Tensor:
    """Seeded float32 values on the CPU, kept for the next check: not to be written to."""
    with torch.inference_mode(False), _disable_current_modes(), torch.device("cpu"):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float32)


CHECKS: dict[str, Callable[[], str | None]] = {
    "matmul": _matmul,
    "attention": _attention,
    "norm": _norm,
    "softmax": _softmax,
    "reduce": _reduce,
    "pointwise": _pointwise,
    "prefill": _prefill,
}
