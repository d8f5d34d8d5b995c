"""Batch-invariant kernels for NVIDIA GPUs (sm_80 and up), written in Triton.

Importing this package imports no Triton; its modules do. `why_unavailable` says whether they can.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

OLDEST_CAPABILITY = (8, 0)
INSTEAD = 'use `device="cpu"` or `kernels="stock"`.'


@cache
def why_unavailable() -> str | None:
    """None if these kernels run on this machine's GPU, else one sentence that says why not."""
    if not torch.cuda.is_available():
        return f"PyTorch sees no CUDA GPU here: {INSTEAD}"
    if find_spec("triton") is None:
        return (
            "The batch-invariant kernels for CUDA are written in Triton, which is not installed: "
            f"run `pip install triton`, or {INSTEAD}"
        )
    if torch.version.cuda is None or torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return (
            "The batch-invariant kernels need an NVIDIA GPU of compute capability 8.0 or newer: "
            f"{INSTEAD}"
        )
    return None
