"""PyTorch's settings of its libraries for products: cuBLASLt, which does not split sums over K."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""PyTorch's condition for cuBLAS among deterministic algorithms."""
LOCK = threading.RLock()
"""Held while the settings change, and by a product that changes them for itself alone."""


@contextmanager
def without_splits() -> Iterator[None]:
    """Within this context PyTorch multiplies by cuBLASLt, which does not split sums over K.

    Nor does it add up in float16. For the whole process, as PyTorch's settings are.
    """
    with LOCK:
        library, *before = state()
        _prefer(torch._C._BlasBackend.Cublaslt)
    try:
        _set_flags((False, False), (False, False), False)
        yield
    finally:
        with LOCK:
            _set_flags(*before)
            _prefer(library)


def _set_flags(bf16: Any, fp16: Any, in_fp16: bool) -> None:
    with LOCK:
        flags: Any = torch.backends.cuda.matmul
        flags.allow_bf16_reduced_precision_reduction = bf16
        flags.allow_fp16_reduced_precision_reduction = fp16
        flags.allow_fp16_accumulation = in_fp16


def is_available() -> bool:
    """True if this PyTorch can keep cuBLASLt from splitting sums."""
    if torch.version.cuda is None:
        return False
    try:
        return all(isinstance(each, tuple) for each in state()[1:3])
    except AttributeError:  # another version of PyTorch
        return False


def state() -> tuple[Any, ...]:
    """The library that PyTorch prefers, its settings of bfloat16 and of float16, and whether it
    may add up in float16.
    """
    return (
        torch._C._get_blas_preferred_backend(),
        torch._C._get_cublas_allow_bf16_reduced_precision_reduction(),
        torch._C._get_cublas_allow_fp16_reduced_precision_reduction(),
        torch._C._get_cublas_allow_fp16_accumulation(),
    )


def is_set() -> bool:
    """True if the settings are those of `without_splits`."""
    return state() == (torch._C._BlasBackend.Cublaslt, (False, False), (False, False), False)


def _prefer(library: Any) -> None:
    _warn_unheard()
    torch._C._set_blas_preferred_backend(library)


@cache
def _warn_unheard() -> None:
    """Let PyTorch say once, to nobody, that the choice of a library is experimental.

    It writes the warning past Python's, to the process's standard error.
    """
    before = torch._C._get_blas_preferred_backend()
    with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        heard = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            torch._C._set_blas_preferred_backend(torch._C._BlasBackend.Cublaslt)
        finally:
            os.dup2(heard, 2)
            os.close(heard)
    torch._C._set_blas_preferred_backend(before)


def is_allowed() -> bool:
    """False if PyTorch refuses cuBLAS because only deterministic algorithms are wanted.

    It does so unless a variable gives cuBLAS a workspace of a fixed size.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    return not deterministic or os.environ.get(WORKSPACE) in WORKSPACES
