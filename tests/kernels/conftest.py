"""Fixtures that several tests of the kernels use."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from detcheck.kernels.cpu.packed import STORE


@pytest.fixture(autouse=True, scope="module")
def nothing_packed() -> None:
    """Each module begins without packed weights: engines of earlier tests are collected."""
    gc.collect()
    assert STORE.num_bytes == 0, "an earlier test left an engine or a mode open"


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch with two threads, so that the twins on stock ops fail.

    With one thread no reduction is split, and attention has one scratch buffer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
