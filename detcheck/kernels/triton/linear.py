"""Linear layers on the GPU: the matrix product of `matmul.py` at the least cost to the host.

The first call for operands of some shape goes through `matmul`, which chooses a tile. What was
chosen is kept. Later calls for operands of that shape, in this layer and in others, look it up,
allocate the result, and launch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from detcheck.kernels.triton import matmul
from detcheck.kernels.triton.classes import Way
from detcheck.kernels.triton.cublas import KeptProduct, Library
from detcheck.kernels.triton.descriptors import fits
from detcheck.kernels.triton.launch import capturing, keep

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)

_stock_linear = F.linear
_kept: dict[Any, Any] = {}
"""What computes a layer, by kind of its operands; takes the input, the weight and the bias."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(…, K) by the (N, K) weight of a linear layer to (…, N), without PyTorch's dispatcher.

    A shortcut for inference. If gradients are recorded, under autocast, under a function
    transform and in a dispatch mode, the stock decomposition runs, which reaches `mm` or `addmm`.
    """
    plain = type(x) in PLAIN_TENSORS and type(weight) in PLAIN_TENSORS
    if not plain or observed():
        return _stock(x, weight, bias)
    kind = (
        x.shape, x.stride(), x.dtype, x.get_device(),
        weight.shape, weight.stride(), weight.dtype, weight.get_device(),
        None if bias is None else (bias.shape, bias.stride(), bias.dtype, bias.get_device()),
    )  # fmt: skip
    kept = _kept.get(kind)
    return _first(x, weight, bias, kind) if kept is None else kept(x, weight, bias)


def observed() -> bool:
    """True if PyTorch itself must see an op: for gradients, autocast, a transform or a mode."""
    return (
        torch.compiler.is_dynamo_compiling()
        or torch.is_grad_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.is_autocast_enabled("cuda")
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def _stock(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # Of a slice PyTorch adds the bias after rounding, in some batches and not in others.
    return _stock_linear(x if bias is None else x.contiguous(), weight, bias)


def _first(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: Any
) -> torch.Tensor:
    """A call whose shapes were not seen yet; keeps how it was launched."""
    if x.dtype not in matmul.FLOATS or weight.dtype != x.dtype or x.dim() == 1:
        return _stock(x, weight, bias)
    rows, right = x.reshape(1, -1, x.shape[-1]), weight.t()[None]
    shape = (*x.shape[:-1], weight.shape[0])
    copied = rows.data_ptr() != x.data_ptr()
    other = copied or x.shape[-1] <= 1 or x.numel() == 0 or weight.numel() == 0
    if other:
        return matmul.multiplied(rows, right, bias).view(shape)
    way = matmul.choice(rows, right, bias)
    product = _kept_product(rows, right, bias, way, shape)
    if product is None:
        return matmul.product(rows, right, bias, way).view(shape)
    if not capturing():  # while a graph is captured, ways are not chosen but given
        keep(_kept, kind, product)
    return product(x, weight, bias)


def _kept_product(
    rows: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    way: Way,
    shape: tuple[int, ...],
) -> Any:
    """What computes layers of this shape from now on, to results of `shape`; None for some ways.

    It takes the input, the weight and the bias.
    """
    if isinstance(way, Library):
        if way.rows_at_once(rows.shape[1]) < rows.shape[1]:
            return None
        return KeptProduct(rows, right.shape[2], shape, partial(_elsewhere, shape))
    if way.descriptors and fits(rows, right):
        return None
    return matmul.LaunchedProduct(
        matmul.Plan.of(rows.shape, right.shape[2], way), rows, right, bias, shape
    )


def _elsewhere(
    shape: tuple[int, ...], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A layer whose operands do not lie as those of the kept product did."""
    return matmul.multiplied(x.reshape(1, -1, x.shape[-1]), weight.t()[None], bias).view(shape)
