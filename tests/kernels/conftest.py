"""Fixtures that several tests of the kernels use."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The fused calls, by what they compute."""
    from detcheck.kernels.fused import attention, layer, mlp, norm

    calls: Counter[str] = Counter()

    def count(holder: Any, name: str) -> None:
        stock = getattr(holder, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return stock(*args)

        monkeypatch.setattr(holder, name, counted)

    for holder, name in (
        (norm, "normed"),
        (layer, "normed"),
        (mlp, "gated"),
        (layer, "gated"),
        (attention.FusedAttention, "compute"),
    ):
        count(holder, name)
    return calls
