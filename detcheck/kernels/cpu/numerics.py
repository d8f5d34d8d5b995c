"""The settings of this process that change the bits of a CPU kernel's result."""

from __future__ import annotations

from torch import get_num_threads
from torch._C import (  # type: ignore[attr-defined]  # not in PyTorch's stubs
    _functorch,
    _get_cpu_allow_fp16_reduced_precision_reduction,
    _get_float32_matmul_precision,
    _get_fp32_precision_getter,
    _get_mkldnn_deterministic,
    _get_mkldnn_enabled,
)

_SUBNORMAL = 5e-324
"""Zero if denormal numbers are flushed: PyTorch has no getter for `set_flush_denormal`."""


def numerics() -> tuple[object, ...]:
    """Every setting that changes numerics, as it is now. Part of the key of each row class.

    Threads, denormal numbers, the precision of float32 products, whether oneDNN may be used and
    whether it must be deterministic, and how float16 is summed.
    """
    return (
        get_num_threads(),
        _SUBNORMAL == 0.0,
        _get_fp32_precision_getter("mkldnn", "matmul"),
        float32_precision(),
        _get_mkldnn_enabled(),
        _get_mkldnn_deterministic(),
        _get_cpu_allow_fp16_reduced_precision_reduction(),
    )


def float32_precision() -> str:
    """PyTorch's precision of float32 products, or `mixed` if each backend has its own.

    The getter raises RuntimeError then.
    """
    try:
        precision: str = _get_float32_matmul_precision()
    except RuntimeError:
        return "mixed"
    return precision


def full_precision() -> bool:
    """False if float32 products may be computed in a lower precision, such as bfloat16."""
    return float32_precision() == "highest" and _get_fp32_precision_getter("mkldnn", "matmul") in (
        "none",
        "ieee",
    )


def in_transform() -> bool:
    """True inside a transform of `torch.func`, where new tensors may have no memory."""
    return _functorch.peek_interpreter_stack() is not None
