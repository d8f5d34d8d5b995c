"""cuBLAS as a source of products: proven over every M that may run, or not used at all.

There is no cuBLAS here. A stand-in computes products with PyTorch, and is told for which M to add
up in another order, as cuBLAS's choice of kernels does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from detcheck.errors import UsageError
from detcheck.kernels.triton import cublas, matmul
from detcheck.kernels.triton.classes import ProductKind

KIND = ProductKind(96, 40, torch.bfloat16, transposed=True, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "MOST_ROWS", 512)
    cublas.proven.cache_clear()


def in_order(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sums over K in one order, whatever the shape."""
    total = torch.zeros(len(left), right.shape[1])
    for k in range(left.shape[1]):
        total += left[:, k : k + 1].float() * right[k].float()
    return total.to(left.dtype)


def library(split_at: Callable[[int], bool]) -> cublas.Product:
    """A product that splits K in two for some numbers of rows."""

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        half = left.shape[1] // 2
        if not split_at(len(left)):
            return in_order(left, right)
        parts = (
            in_order(left[:, :half].float(), right[:half].float()),
            in_order(left[:, half:].float(), right[half:].float()),
        )
        return (parts[0] + parts[1]).to(left.dtype)

    return multiply


def test_a_library_without_splits_is_proven() -> None:
    assert cublas.proven(KIND, cublas.settings(), library(lambda rows: False))


@pytest.mark.parametrize("rows", [64, 320, 512])
def test_one_shape_that_splits_its_sums_is_enough_to_refuse_a_kind(rows: int) -> None:
    multiply = library(lambda shape: shape == rows)
    assert not cublas.proven(KIND, cublas.settings(), multiply)
    differing = [shape for shape, agrees in cublas.proof(KIND, multiply) if not agrees]
    assert differing == ([rows] if rows > 64 else [*range(128, 513, 64)])


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 500, 512, 513, 1100])
def test_only_proven_shapes_run_whatever_m_is(rows: int) -> None:
    ran: list[int] = []

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ran.append(len(left))
        return in_order(left, right)

    left, right = torch.randn(rows, 24).bfloat16(), torch.randn(24, 8).bfloat16()
    out = cublas.by_shapes(left, right, multiply)
    assert torch.equal(out, in_order(left, right))
    shapes = {shape for shape, _ in cublas.proof(KIND, in_order)}
    assert set(ran) <= shapes


def test_a_slice_is_copied_to_where_shapes_were_tried() -> None:
    left, right = torch.randn(64, 25).bfloat16()[:, :24], torch.randn(24, 8).bfloat16()
    seen: list[bool] = []

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append(left.is_contiguous())
        return in_order(left, right)

    assert torch.equal(cublas.by_shapes(left, right, multiply), in_order(left, right))
    assert seen == [True]


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cublas.VARIABLE, raising=False)
    assert not cublas.enabled()


def test_it_is_refused_unless_it_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cublas.VARIABLE, "cublas")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with pytest.raises(UsageError, match="CUBLAS_WORKSPACE_CONFIG=:16:8"):
        cublas.enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with pytest.raises(UsageError, match="CUBLASLT_WORKSPACE_SIZE=1"):
        cublas.enabled()
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "1")
    assert cublas.enabled()


def test_a_kind_is_not_tried_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "capturing", lambda: True)
    with pytest.raises(UsageError, match="run one step without a graph"):
        cublas.proven(KIND, cublas.settings(), in_order)


def test_products_take_the_library_only_if_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.randn(3, 24).bfloat16(), torch.randn(8, 24).bfloat16().t()
    monkeypatch.setattr(cublas, "_enabled", lambda: True)
    assert not cublas.serves(left[None], right[None], None)  # on the CPU
    monkeypatch.setattr(cublas, "serves", lambda *operands: operands[2] is None)
    monkeypatch.setattr(cublas, "stock", in_order)
    assert torch.equal(matmul.mm(left, right), in_order(left, right))
