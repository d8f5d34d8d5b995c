"""Batch-invariant linear layers on the CPU: packed weights, else the products of `matmul.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import is_autocast_enabled, is_grad_enabled
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F

from detcheck.kernels.cpu.matmul import is_settled, stock_mm_out
from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.cpu.packed_weight import PackedWeight, product
from detcheck.kernels.cpu.rows import CACHE_LINE_BYTES
from detcheck.kernels.cpu.stock import stock_kernel

OP = "detcheck::linear"
"""The product by a packed weight, as autograd and whoever watches the dispatcher see it."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_stock_linear = F.linear
_decomposition = stock_kernel("linear")
"""What the stock op is made of, without the dispatcher."""

_settled_linears: dict[tuple[Any, ...], tuple[tuple[int, int], tuple[int, int], torch.Size]] = {}
"""Calls whose operands run as they are: shapes of the left-hand side, the product, the result."""

_library = torch.library.Library("detcheck", "DEF")
_library.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(…, K) by the (N, K) weight of a linear layer, plus a bias (N,), to (…, N).

    Every row has the same bits in any batch. Parameters are packed (see `packed.py`), with
    gradients and without. Under autocast, `vmap`, forward-mode derivatives, and for tensors of
    other types, the stock decomposition runs, which calls `mm` or `addmm`.
    """
    copy = STORE.find(weight)
    if copy is None:
        return _linear_unpacked(input, weight, bias)
    usual = type(input) in _PLAIN and input.is_cpu and input.dtype == weight.dtype
    if not usual or input.is_nested or is_transformed():
        return _stock_linear(input, weight, bias)
    if is_observed() or (is_grad_enabled() and _needs_gradients(input, weight, bias)):
        observed: torch.Tensor = torch.ops.detcheck.linear(input, weight, bias)
        return observed
    return _linear_packed(input, copy, weight, bias)


def is_transformed() -> bool:
    """True if autocast or a transform of `torch.func` changes what an op does."""
    return (
        is_autocast_enabled("cpu")
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def is_observed() -> bool:
    """True if a dispatch or function mode wants to see each op."""
    return _len_torch_dispatch_stack() > 0 or _len_torch_function_stack() > 0


def _needs_gradients(*tensors: torch.Tensor | None) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _linear_packed(
    input: torch.Tensor, copy: PackedWeight, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    fit = input.shape[-1:] == (copy.inner,) and (bias is None or _fits(bias, weight))
    if not fit or not input.numel() or input.layout != torch.strided:
        return _stock_linear(input, weight, bias)
    return multiply(input, copy, bias)


def multiply(
    input: torch.Tensor, copy: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(…, K), not empty, by a packed weight of K to (…, N), plus a bias (N,): invariant rows."""
    rows = input.numel() // copy.inner
    classes = copy.classes[bias is not None]
    plain = input.is_contiguous() and not input.data_ptr() % CACHE_LINE_BYTES
    if plain and classes.fits(rows):
        return product(input, copy.packed, bias)
    left = input.reshape(rows, copy.inner)
    if not left.is_contiguous() or left.data_ptr() % CACHE_LINE_BYTES:
        left = left.clone(memory_format=torch.contiguous_format)
    result = classes.apply(lambda part: product(part, copy.packed, bias), left)
    return result.view(*input.shape[:-1], copy.columns)


def _fits(bias: torch.Tensor, weight: torch.Tensor) -> bool:
    return bias.dtype == weight.dtype and bias.shape == weight.shape[:1] and bias.is_cpu


def _linear_op(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    copy = STORE.find(weight)
    if copy is None:
        return _stock_linear(input, weight, bias)
    return _linear_packed(input, copy, weight, bias)


def _linear_shape(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, weight, bias = inputs
    ctx.save_for_backward(input, weight)
    ctx.biased = bias is not None


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Of the stock formula: input (…, K), weight (N, K), bias (N,)."""
    input, weight = ctx.saved_tensors
    needed = ctx.needs_input_grad
    rows = grad.reshape(-1, grad.shape[-1])
    by_input = (rows @ weight).view(input.shape) if needed[0] else None
    by_weight = rows.t() @ input.reshape(-1, input.shape[-1]) if needed[1] else None
    by_bias = rows.sum(0) if ctx.biased and needed[2] else None
    return by_input, by_weight, by_bias


_library.impl("linear", _linear_op, "CPU")
torch.library.register_fake(OP, _linear_shape, lib=_library)
torch.library.register_autograd(OP, _gradients, setup_context=_save, lib=_library)


def _linear_unpacked(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A shortcut to `mm` for calls that need neither copies nor padding, without gradients.

    All others take the stock decomposition, which calls `mm` or `addmm`: so do packed weights and
    other tensors of a type of their own, and all calls that are transformed or observed.
    """
    plain = type(weight) in _PLAIN and type(input) in _PLAIN and input.is_cpu
    if (
        not plain
        or weight.layout != torch.strided
        or input.is_nested
        or is_observed()
        or is_transformed()
    ):
        return _stock_linear(_laid_out(input, bias), weight, bias)
    simple = bias is None and not is_grad_enabled() and input.is_contiguous()
    if not simple or input.data_ptr() % CACHE_LINE_BYTES:
        return decomposed(input, weight, bias)
    key = (
        input.shape,
        weight.shape,
        weight.stride(),
        input.dtype,
        weight.data_ptr() % CACHE_LINE_BYTES,
        numerics(),
    )
    shapes = _settled_linears.get(key)
    if shapes is None:
        out = decomposed(input, weight)
        rows = (input.numel() // max(1, input.shape[-1]), input.shape[-1])
        if input.dim() > 1 and is_settled(input.view(rows), weight.t()):
            _settled_linears[key] = (rows, (rows[0], weight.shape[0]), out.shape)
        return out
    left_shape, product_shape, out_shape = shapes
    out = stock_mm_out(input.view(left_shape), weight.t(), out=input.new_empty(product_shape))
    product: torch.Tensor = out.view(out_shape)
    return product


def decomposed(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """aten::linear, as TorchScript and PyTorch's recurrent layers call it: by `mm` or `addmm`."""
    result: torch.Tensor = _decomposition(_laid_out(input, bias), weight, bias)
    return result


def _laid_out(input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The input, contiguous if a bias is added.

    If its input is not contiguous, PyTorch adds the bias after rounding. A slice of one request is
    contiguous, the same slice of several requests is not.
    """
    return input if bias is None or input.layout != torch.strided else input.contiguous()
