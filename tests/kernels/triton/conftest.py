"""These tests need Triton's interpreter from the first import on, or a GPU.

Without either they are left to `tests/kernels/test_triton.py`, which runs them in a process of
their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

SMALL = "test_triton_small.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All but the small cases are a sweep."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != SMALL:
            item.add_marker(pytest.mark.sweep)


def numpy_silu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """SiLU as the interpreter computes it, which has NumPy's exponential function."""
    wide = x.detach().float().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(wide / (np.float32(1) + np.exp(-wide))).to(x.dtype)


@pytest.fixture
def forms_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused forms of a GPU serve, nothing was compared yet, and comparisons are short.

    In the interpreter tensors on the CPU are taken for tensors on a GPU, and our Triton kernels
    stand for PyTorch's reductions on the CPU.
    """
    from under_test import INTERPRETED, ops

    from detcheck.kernels import overrides
    from detcheck.kernels.fused import calls, gpu, gpu_layer, layer, mlp, norm, proofs

    for name in ("NORMS", "ACTIVATIONS", "ROTATIONS"):
        monkeypatch.setattr(gpu, name, proofs.ProvenLaunches())
    monkeypatch.setattr(gpu_layer, "SUMS", proofs.ProvenLaunches())
    if INTERPRETED:
        monkeypatch.setattr(proofs, "ENTRIES", 1 << 12)
        monkeypatch.setattr(gpu, "is_on_gpu", lambda x: x.is_cpu)
        monkeypatch.setattr(calls, "why_unavailable", lambda: None)
        for module in (layer, mlp, norm):
            monkeypatch.setattr(module, "is_plain", lambda x: False)
        monkeypatch.setitem(overrides.ATEN["reduce"], "CPU", ops.KERNELS["reduce"])
        monkeypatch.setattr(F, "silu", numpy_silu)
        monkeypatch.setattr(gpu, "_stock_silu", numpy_silu)


@pytest.fixture
def mode(forms_on_gpu: None) -> Iterator[Any]:
    """The batch-invariant mode, in inference."""
    from detcheck.kernels.mode import batch_invariant

    with torch.no_grad(), batch_invariant(pack_weights="off") as mode:
        yield mode
