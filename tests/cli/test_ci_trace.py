"""`detcheck ci` names the first op that differs, if a model in this process fails."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines.conftest import tiny_model

from detcheck import runner
from detcheck.engines.static import StaticEngine
from detcheck.errors import ModelError
from detcheck.kernels.cpu.stock import stock_kernel
from detcheck.probes import trace as trace_module

__all__ = ["tiny_model"]

FILE = """
[experiment]
prompts = ["What is the sea?"]
completions = 28
batch-sizes = [1, 4]
max-new-tokens = 4
kernels = ["batch-invariant:matmul+attention"]
[target]
engine = "static"
[gate]
max-distinct = 1
level = "tokens"
"""
TOKENS_ALONE = (1, len("What is the sea?"))


@pytest.fixture
def ci(detcheck, tiny_model, monkeypatch):
    """Returns a function that runs `detcheck ci` on a tiny model in this process."""

    def opened(experiment, target, *_: object) -> StaticEngine:
        return StaticEngine(tiny_model, experiment, target)

    for module in (runner, trace_module):
        monkeypatch.setattr(module, "open_engine", opened)
    Path("detcheck.toml").write_text(FILE, encoding="utf-8")
    return lambda: detcheck("ci", "-o", "out", "--summary", "summary.md")


@pytest.fixture
def planted_silu() -> Iterator[None]:
    """An activation that depends on the number of tokens, so strongly that answers change."""
    stock = stock_kernel("silu")
    library = torch.library.Library("aten", "IMPL")

    def silu(x: torch.Tensor) -> torch.Tensor:
        out = stock(x)
        return out if x.numel() // x.shape[-1] in TOKENS_ALONE else -out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("silu", silu, "CPU")
    yield
    library._destroy()


@pytest.mark.sweep
@pytest.mark.usefixtures("planted_silu")
def test_the_planted_op_is_in_the_summary_and_in_the_run(ci) -> None:
    result = ci()
    assert result.code == 1, result.err
    summary = html.unescape(Path("summary.md").read_text(encoding="utf-8"))
    assert "First op that differs under batch-invariant:matmul+attention kernels" in summary
    for text in (summary.replace("\\", ""), " ".join(result.err.split())):
        assert "aten::silu in model.layers.0.mlp.act_fn, in the prefill" in text
    assert Path("out/run/trace.json").exists()


def test_without_a_fault_nothing_is_traced(ci) -> None:
    """The twin."""
    assert ci().code != 1
    assert "op that differs" not in Path("summary.md").read_text(encoding="utf-8")
    assert not Path("out/run/trace.json").exists()


@pytest.mark.sweep
@pytest.mark.usefixtures("planted_silu")
def test_a_trace_that_fails_does_not_hide_the_verdict(ci, monkeypatch) -> None:
    def broken(_subject):
        raise ModelError("The model is gone.")

    monkeypatch.setattr(trace_module, "trace", broken)
    assert ci().code == 1
    summary = Path("summary.md").read_text(encoding="utf-8")
    assert "The first op that differs was not found: The model is gone." in summary
