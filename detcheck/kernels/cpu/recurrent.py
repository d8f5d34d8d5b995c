"""Batch-invariant LSTM layers on the CPU.

oneDNN computes sequences of equal length in a kernel of its own, in which rows depend on the batch.
For other packed sequences PyTorch calls the linear layers and activations that a mode overrides. So
a batch of sequences of equal length gets one more, of zeros, that is longer by a step.

Dropout draws by the place in the batch: layers with dropout in training run as stock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.cpu.stock import stock_kernel

_stock, _stock_packed = stock_kernel("lstm.input"), stock_kernel("lstm.data")
Tensors = Sequence[torch.Tensor]
States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The output, and the last hidden and cell states of each layer and direction."""


def lstm(input: torch.Tensor, states: Tensors, weights: Tensors, *args: Any) -> States:
    """aten::lstm.input of (length, batch, features), or (batch, length, …) if `batch_first`.

    `args` are has_biases, num_layers, dropout, train, bidirectional and batch_first.
    """
    *options, batch_first = args
    if not _usual(input, 3, *options):
        result: States = _stock(input, states, weights, *args)
        return result
    steps = input.transpose(0, 1) if batch_first else input
    out, hidden, cell = _of_equal_length(steps, states, weights, *options)
    return (out.transpose(0, 1) if batch_first else out), hidden, cell


def packed_lstm(
    data: torch.Tensor, batch_sizes: torch.Tensor, states: Tensors, weights: Tensors, *options: Any
) -> States:
    """aten::lstm.data of packed sequences (rows, features), `batch_sizes` of them at each step.

    `options` are has_biases, num_layers, dropout, train and bidirectional.
    """
    length, rows = batch_sizes.numel(), len(data)
    if not _usual(data, 2, *options) or length * batch_sizes[0] != rows:
        result: States = _stock_packed(data, batch_sizes, states, weights, *options)
        return result
    steps = data.reshape(length, rows // length, -1)
    out, hidden, cell = _of_equal_length(steps, states, weights, *options)
    return out.flatten(0, 1), hidden, cell


def _usual(
    data: torch.Tensor,
    dims: int,
    _biases: bool,
    _layers: int,
    dropout: float,
    train: bool,
    *_: bool,
) -> bool:
    plain = data.is_cpu and data.dim() == dims and data.numel() > 0
    return plain and not (train and dropout > 0)


def _of_equal_length(
    steps: torch.Tensor, states: Tensors, weights: Tensors, *options: Any
) -> States:
    """The LSTM of `steps` (length, batch, features), with a sequence of zeros before the others."""
    if torch.is_autocast_enabled("cpu"):  # as the kernel of oneDNN does
        cast = partial(torch.Tensor.to, dtype=torch.get_autocast_dtype("cpu"))
        steps, states, weights = cast(steps), [*map(cast, states)], [*map(cast, weights)]
    length, batch = steps.shape[:2]
    data = F.pad(steps, (0, 0, 1, 0)).flatten(0, 1)
    out, hidden, cell = _stock_packed(
        F.pad(data, (0, 0, 0, 1)),
        torch.tensor([batch + 1] * length + [1]),
        [F.pad(state, (0, 0, 1, 0)) for state in states],
        weights,
        *options,
    )
    return out[:-1].view(length, batch + 1, -1)[:, 1:], hidden[:, 1:], cell[:, 1:]


KERNELS: dict[str, Callable[..., Any]] = {"lstm.input": lstm, "lstm.data": packed_lstm}
"""Overrides by aten op."""
