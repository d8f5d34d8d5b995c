"""Compiled functions run eagerly while a mode is on: their kernels depend on the batch."""

from __future__ import annotations

import pytest
import torch
from sweeps import few

from detcheck.errors import UsageError
from detcheck.kernels.mode import batch_invariant
from detcheck.models.tiny import config_of, shrunk, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of many things


@pytest.fixture
def runs() -> list[str]:
    """How the compiled function ran: `compiled` once per trace, `eager` once per call."""
    return []


def compiled(runs: list[str]) -> object:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))

    def function(x: torch.Tensor) -> torch.Tensor:
        runs.append("compiled" if torch.compiler.is_compiling() else "eager")
        return (x @ weight) * 2

    return torch.compile(function, backend="eager")


def test_compiled_functions_run_eagerly_inside_and_compiled_outside(runs: list[str]) -> None:
    function = compiled(runs)
    x = torch.randn(5, 64)
    before = function(x)
    assert "eager" not in runs
    runs.clear()
    with batch_invariant() as mode:
        for _ in range(2):
            ours = function(x)
        assert runs == ["eager", "eager"]
        assert mode.proof().overrides["aten::mm"] == 2
        with batch_invariant("norm"):
            function(x)
        assert runs == ["eager"] * 3
    function(x)
    assert "eager" not in runs[3:]
    torch.testing.assert_close(ours, before)


def test_functions_compiled_inside_run_eagerly_too(runs: list[str]) -> None:
    with batch_invariant("matmul"):
        compiled(runs)(torch.randn(5, 64))
    assert runs == ["eager"]


def test_compiled_layers_do_not_crash() -> None:
    layer = torch.compile(torch.nn.Linear(64, 32), dynamic=True, backend="eager")
    x = torch.randn(9, 64)
    with torch.no_grad(), batch_invariant("matmul"):
        whole = layer(x)
        assert torch.equal(layer(x[:1]), whole[:1])


def test_an_exception_gives_compiled_functions_back(runs: list[str]) -> None:
    function = compiled(runs)
    with pytest.raises(ZeroDivisionError), batch_invariant():
        raise ZeroDivisionError
    function(torch.randn(5, 64))
    assert runs[0] == "compiled"


def test_a_mode_inside_a_compiled_function_is_refused() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with batch_invariant("matmul"):
            return x @ x

    with pytest.raises(UsageError, match="enter it before the function is called"):
        torch.compile(function, backend="eager")(torch.ones(2, 2))
    with batch_invariant("matmul"):
        torch.compile(function, backend="eager")(torch.ones(2, 2))  # runs eagerly


def test_traces_are_refused_inside_and_possible_outside() -> None:
    layer, x = torch.nn.Linear(8, 4), torch.ones(3, 8)
    with batch_invariant("matmul"), pytest.raises(UsageError, match="trace before the mode"):
        torch.jit.trace(layer, x)
    traced = torch.jit.trace(layer, x)
    with batch_invariant("matmul"):
        torch.testing.assert_close(traced(x), layer(x))


@few("name", ["bart", "llama"])
def test_a_compiled_model_is_checked_as_it_was_written(name: str) -> None:
    """Its padding is refused, too, if it matters."""
    model = torch.compile(tiny_model(shrunk(config_of(name))), backend="eager")
    rows, padded = torch.tensor([[1, 5, 6]]), torch.tensor([[0, 1, 1]])
    with torch.no_grad(), batch_invariant(model=model) as mode:
        model(input_ids=rows)
        if name == "bart":
            with pytest.raises(UsageError, match="for requests of one length only"):
                model(input_ids=rows, attention_mask=padded)
        else:
            model(input_ids=rows, attention_mask=padded)
        assert mode.proof().fault is None
    with torch.no_grad(), batch_invariant() as mode:
        model(input_ids=rows)
    assert (mode.proof().fault is None) is (name == "llama")
