"""These tests need Triton's interpreter from the first import on, or a GPU.

Without either they are left to `tests/kernels/test_triton.py`, which runs them in a process of
their own.
"""

from __future__ import annotations

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
