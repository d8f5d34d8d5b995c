"""Batch-invariant convolutions on the CPU.

oneDNN chooses a kernel by the shape of the whole batch. A sample by itself, in memory of its own,
always has the same shape and alignment, so most convolutions are one stock call per sample.

The short convolutions of state spaces have one filter a channel. There the sum over the filter is
written out, in order, for all entries at once: an entry depends on nothing but the few entries that
its filter covers. So neither padding, nor a decoding step instead of a prefill, changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.cpu.stock import stock_kernel

_stock = stock_kernel("convolution")
_stock_backward = stock_kernel("convolution_backward")
Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
CACHED_ELEMENTS = 2**20
"""Above this size samples are computed one by one, which stay in the processor's cache."""
_SUMMED_AS = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
"""The dtype of the sums, by dtype of the operands."""


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *args: Any
) -> torch.Tensor:
    """aten::convolution of x (batch, channels, …); the other arguments are those of the op."""
    if not len(x):
        result: torch.Tensor = _stock(x, weight, bias, *args)
        return result
    if _one_filter_a_channel(x, weight, *args):
        stride, padding, dilation = (sizes[0] for sizes in args[:3])
        samples = x.split(1) if x.numel() > CACHED_ELEMENTS else (x,)
        filters = weight[:, 0]
        return torch.cat(
            [filtered(each, filters, bias, stride, padding, dilation) for each in samples]
        )
    return torch.cat([_stock(sample, weight, bias, *args) for sample in _own(x)])


def convolution_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *args: Any
) -> Gradients:
    """aten::convolution_backward: the gradients by `x` (sample by sample), `weight` and the bias.

    `args` are those of the op; the last one says which of the three are needed.
    """
    *options, (by_input, *others) = args
    found: Gradients = (None, None, None)
    if any(others) or not len(x):
        found = _stock_backward(grad, x, weight, *options, [by_input and not len(x), *others])
    if not by_input or not len(x):
        return found
    only = [True, False, False]
    samples = zip(_own(grad), _own(x), strict=True)
    each = [_stock_backward(*sample, weight, *options, only)[0] for sample in samples]
    return torch.cat(each), *found[1:]


def _own(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The samples of a batch, each in memory of its own."""
    return (sample.clone(memory_format=torch.contiguous_format) for sample in x.split(1))


def filtered(
    x: torch.Tensor,
    filters: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> torch.Tensor:
    """x (batch, channels, tokens), each channel by its own of `filters` (channels, taps).

    Sums from the bias on, tap after tap, in float32 or float64.
    """
    summed_as = _SUMMED_AS[x.dtype]
    tokens = F.pad(x.to(summed_as), (padding, padding))
    reach = dilation * (filters.shape[1] - 1)
    length = (tokens.shape[2] - reach - 1) // stride + 1
    total = tokens.new_zeros((x.shape[0], x.shape[1], length))
    if bias is not None:
        total += bias.to(summed_as)[:, None]
    for tap, factors in enumerate(filters.to(summed_as).unbind(1)):
        seen = tokens[:, :, tap * dilation :: stride][:, :, :length]
        total.addcmul_(seen, factors[:, None])
    return total.to(x.dtype)


def _one_filter_a_channel(
    x: torch.Tensor,
    weight: torch.Tensor,
    _stride: Sequence[int],
    _padding: Sequence[int],
    _dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
) -> bool:
    return (
        x.dim() == 3
        and not transposed
        and groups == x.shape[1] == weight.shape[0]
        and x.dtype == weight.dtype
        and x.dtype in _SUMMED_AS
    )


KERNELS: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "convolution_backward": convolution_backward,
}
"""Overrides by aten op."""
