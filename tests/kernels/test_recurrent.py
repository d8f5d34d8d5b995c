"""RNN, GRU and LSTM layers: a sequence is the same in any batch, with the values of stock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sweeps import few
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from detcheck.kernels.mode import batch_invariant

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

BATCH, LENGTH, FEATURES, HIDDEN = 17, 6, 96, 72
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYERS: dict[str, Callable[..., Any]] = {
    "GRU": nn.GRU,
    "LSTM": nn.LSTM,
    "RNN": nn.RNN,
    "RNN, relu": partial(nn.RNN, nonlinearity="relu"),
    "GRU, both directions": partial(nn.GRU, bidirectional=True),
    "LSTM, two layers": partial(nn.LSTM, num_layers=2),
    "LSTM, both directions": partial(nn.LSTM, bidirectional=True),
    "LSTM, projection": partial(nn.LSTM, proj_size=40),
    "LSTM, no bias": partial(nn.LSTM, bias=False),
}


def layer_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return LAYERS[name](FEATURES, HIDDEN, batch_first=True).to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, LENGTH, FEATURES, generator=generator).to(dtype)


def as_batch(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The outputs of sequences of one length."""
    return layer(x)[0]


def as_packed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The outputs of packed sequences, each with a length that its first entry decides."""
    lengths = (x[:, 0, 0].float().abs() * 100).long() % LENGTH + 1
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=LENGTH)[0]


def rows_that_differ(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> int:
    whole = function(x)
    differ = 0
    for size in (1, 2, 3, 5, 8, 16):
        for start in (0, len(x) - size):
            part = function(x[start : start + size].clone())
            differ += int((part != whole[start : start + size]).flatten(1).any(-1).sum())
    return differ


USUAL = [("LSTM", torch.float32), ("RNN", torch.bfloat16)]
SWEPT = [
    pytest.param(name, dtype, marks=pytest.mark.sweep)
    for name in LAYERS
    for dtype in DTYPES
    if (name, dtype) not in USUAL
]


@torch.no_grad()
@pytest.mark.parametrize("compute", [as_batch, as_packed])
@pytest.mark.parametrize(("name", "dtype"), [*USUAL, *SWEPT])
def test_a_sequence_is_the_same_in_any_batch(
    name: str, dtype: torch.dtype, compute: Callable[..., torch.Tensor]
) -> None:
    layer, x = layer_of(name, dtype), inputs(dtype)
    with batch_invariant() as mode:
        assert rows_that_differ(partial(compute, layer), x) == 0
        assert mode.proof().fault is None


@torch.no_grad()
def test_stock_layers_fail_this_check() -> None:
    for name, dtype in (("GRU", torch.float32), ("GRU", torch.bfloat16), ("RNN", torch.float16)):
        assert rows_that_differ(partial(as_batch, layer_of(name, dtype)), inputs(dtype)) > 0


@few("name", LAYERS, every=3)
@pytest.mark.parametrize("compute", [as_batch, as_packed])
def test_values_and_gradients_are_those_of_stock(
    name: str, compute: Callable[..., torch.Tensor]
) -> None:
    layer, x = layer_of(name), inputs()[:5].requires_grad_()
    wanted = (x, *layer.parameters())
    stock = compute(layer, x)
    expected = torch.autograd.grad(stock.square().sum(), wanted)
    with batch_invariant():
        ours = compute(layer, x)
        found = torch.autograd.grad(ours.square().sum(), wanted)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [True, False])
def test_states_are_taken_and_returned_as_in_stock(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    x, states = torch.randn(3, 4, 8), torch.randn(2, 4, 3 if batch_first else 4, 6)
    out, (hidden, cell) = layer(x, (states[0], states[1]))
    with batch_invariant():
        ours, (our_hidden, our_cell) = layer(x, (states[0], states[1]))
        alone = layer(x[0, :1] if batch_first else x[:1, 0])[0]  # one step, not in a batch
        assert alone.shape == (1, 12)
    for mine, stock in ((ours, out), (our_hidden, hidden), (our_cell, cell)):
        torch.testing.assert_close(mine, stock)


def test_autocast_and_dropout_are_those_of_stock() -> None:
    layer, x = layer_of("LSTM, two layers"), inputs()[:3]
    layer.dropout = 0.5

    def computed() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(3)
        dropped = layer.train()(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            return dropped, layer.eval()(x)[0]

    stock = computed()
    with batch_invariant():
        ours = computed()
    assert ours[1].dtype == stock[1].dtype
    assert torch.equal(ours[0], stock[0])
    torch.testing.assert_close(ours[1], stock[1], rtol=0.02, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_keep_their_rows(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    cell: nn.Module = kind(FEATURES, HIDDEN)
    x = inputs()[:, 0]

    def computed(rows: torch.Tensor) -> torch.Tensor:
        out = cell(rows)
        return out if isinstance(out, torch.Tensor) else torch.cat(out, -1)

    assert rows_that_differ(computed, x) > 0
    with batch_invariant():
        assert rows_that_differ(computed, x) == 0


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_linear_layers_in_scripts_add_the_bias_before_rounding() -> None:
    """Of an input that is not contiguous, as of the slice of one request."""
    layer = torch.jit.script(nn.Linear(FEATURES, HIDDEN).bfloat16())
    x = inputs(torch.bfloat16).transpose(0, 1).contiguous()

    def computed(rows: torch.Tensor) -> torch.Tensor:
        return layer(rows.transpose(0, 1).contiguous().transpose(0, 1))

    assert rows_that_differ(computed, x) > 0
    with batch_invariant():
        assert rows_that_differ(computed, x) == 0


@torch.no_grad()
@pytest.mark.parametrize("pack_weights", ["auto", "off"])
def test_sparse_inputs_run_as_in_stock(pack_weights: str) -> None:
    layer, x = nn.Linear(8, 4), torch.eye(8).to_sparse()
    stock = F.linear(x, layer.weight), F.linear(x, layer.weight, layer.bias)
    with batch_invariant(pack_weights=pack_weights):
        ours = F.linear(x, layer.weight), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, stock)


def test_packed_outputs_are_packed() -> None:
    x = inputs()[:3]
    packed = pack_padded_sequence(x, torch.tensor([LENGTH] * 3), batch_first=True)
    with torch.no_grad(), batch_invariant():
        out, _ = layer_of("LSTM")(packed)
    assert isinstance(out, PackedSequence)
    assert torch.equal(out.batch_sizes, packed.batch_sizes)
