"""Batch-invariant kernels. They need torch, transformers and `detcheck.errors`, nothing else.

    from detcheck.kernels import batch_invariant, require_coverage

Names are imported when they are first used, so that importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detcheck.kernels.coverage import require_coverage, uncovered
    from detcheck.kernels.mode import Proof, active_families, batch_invariant
    from detcheck.kernels.op_watch import Uncovered
    from detcheck.kernels.settings import KernelSettings

__all__ = [
    "KernelSettings",
    "Proof",
    "Uncovered",
    "active_families",
    "batch_invariant",
    "require_coverage",
    "uncovered",
]

_MODULES = {
    "KernelSettings": "settings",
    "Proof": "mode",
    "Uncovered": "op_watch",
    "active_families": "mode",
    "batch_invariant": "mode",
    "require_coverage": "coverage",
    "uncovered": "coverage",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
