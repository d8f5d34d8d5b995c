"""Packed copies of weights take a part of the free memory, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from detcheck.kernels.cpu import packed, packed_weight
from detcheck.kernels.cpu.memory import available_bytes
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.skipif(
    torch.bfloat16 not in packed_weight._dtypes(), reason="oneDNN packs no bfloat16 on this machine"
)


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "available_bytes", lambda: 2 * 3 * 64 * 64 * 4)


@pytest.mark.usefixtures("short_memory")
def test_a_model_is_packed_as_a_whole_or_not_at_all() -> None:
    x = torch.randn(5, 64)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(4)]
    with torch.no_grad(), batch_invariant("matmul") as mode:
        nn.Sequential(*layers[:3])(x)  # three fit
        assert mode.proof().packed_bytes == 3 * 64 * 64 * 4
    with torch.no_grad(), batch_invariant("matmul") as mode:
        nn.Sequential(*layers)(x)
        assert mode.proof().packed_bytes == 0
    assert "off for 4 weights" in mode.proof().pack_weights


def test_memory_that_was_short_once_is_looked_at_again() -> None:
    """Also while an engine keeps the copies of its own weights, which count as its share."""
    x, kept = torch.randn(5, 64), nn.Linear(64, 64, bias=False)
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    release = STORE.keep()
    try:
        with torch.no_grad():
            with batch_invariant("matmul") as mode:
                kept(x)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(packed, "available_bytes", lambda: 2 * 3 * 64 * 64 * 4)
                with batch_invariant("matmul"):
                    assert STORE._budget == (2 * 3 + 1) * 64 * 64 * 2 - 64 * 64 * 4
            with batch_invariant("matmul") as mode:
                layers(x)
                assert mode.proof().packed_bytes == 5 * 64 * 64 * 4
    finally:
        release()


def test_memory_is_bounded_by_the_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.current").write_text("1024\n")
    assert available_bytes(tmp_path) == 3072
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 1 << 20
    assert available_bytes(tmp_path / "none") > 1 << 20
