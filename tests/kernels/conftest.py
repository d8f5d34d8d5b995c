"""Fixtures that several tests of the kernels use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def nothing_packed() -> None:
    """Each module begins without packed weights: engines of earlier tests are collected.

    The traceback of an earlier failure, which Python keeps, would keep an engine.
    """
    sys.last_traceback = sys.last_value = None
    gc.collect()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch with two threads, so that the twins on stock ops fail.

    With one thread no reduction is split, and attention has one scratch buffer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
