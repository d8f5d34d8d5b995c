"""These tests need Triton's interpreter from the first import on, or a GPU.

Without either they are left to `tests/kernels/test_triton.py`, which runs them in a process of
their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

SMALL = "test_triton_small.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All but the small cases are a sweep."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != SMALL:
            item.add_marker(pytest.mark.sweep)
