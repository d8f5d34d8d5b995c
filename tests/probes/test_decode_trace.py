"""Decoding against prefilling: a planted op is named, and none under fully-invariant kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from detcheck.kernels.cpu.stock import stock_kernel
from detcheck.models import LoadedModel
from detcheck.probes.decode_trace import trace_decoding

PROMPT = tuple(range(5, 25))


@contextmanager
def planted_silu(change: float) -> Iterator[None]:
    """Changes the last row of silu if it has several."""
    stock = stock_kernel("silu")

    def planted(x: torch.Tensor) -> torch.Tensor:
        out = stock(x)
        if x.dim() == 3 and x.shape[1] > 1:
            out[:, -1] += change
        return out

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("silu", planted, "CPU")
    try:
        yield
    finally:
        library._destroy()


def test_no_op_differs_under_fully_invariant_kernels(tiny_model: LoadedModel) -> None:
    found = trace_decoding(tiny_model, PROMPT, "fully-invariant", 4)
    assert (found.first, found.layers, found.max_logit_change) == (None, (), 0)
    assert found.steps_compared == 4
    assert found.ops_compared > 100


def test_the_first_op_of_stock_kernels_is_named(tiny_model: LoadedModel) -> None:
    """The twin: the same passes with stock kernels."""
    found = trace_decoding(tiny_model, PROMPT, "stock", 8)
    first: Any = found.first
    assert first is not None
    assert found.max_logit_change > 0
    assert first.op.startswith("aten::")
    assert [layer.layer for layer in found.layers] == ["model.layers.0", "model.layers.1"]
    assert max(layer.elements_differ for layer in found.layers) > 0


@pytest.mark.parametrize("kernels", ["batch-invariant:matmul+attention+prefill"])
def test_a_planted_op_is_named_with_its_module(tiny_model: LoadedModel, kernels: str) -> None:
    with planted_silu(1e-3):
        found = trace_decoding(tiny_model, PROMPT, kernels, 3)
    first: Any = found.first
    assert first is not None
    assert (first.op, first.step) == ("aten::silu", 0)
    assert "layers.0.mlp" in first.module
    assert (first.reference_shape[1], first.shape[1]) == (1, len(PROMPT) + 1)
    assert (first.rows, first.rows_differ, first.indirect) == (1, 1, False)
    assert trace_decoding(tiny_model, PROMPT, kernels, 3).first is None
