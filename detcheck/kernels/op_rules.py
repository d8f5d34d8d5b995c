"""Which single call of an op is invariant, and why: by a kernel of ours, or by what it computes.

A call is invariant if a kernel of ours serves it; if it computes nothing (views, copies, gathers);
if it gives whole numbers or truth values; or if it works entry by entry and rounds each entry in
the same way, at any position. All other calls are not: quantised products, scans, attention that
does not go through transformers' interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from detcheck.kernels.cpu.in_order import can_multiply
from detcheck.kernels.cpu.linear import OP as PACKED_OP
from detcheck.kernels.cpu.matmul import is_weight
from detcheck.kernels.cpu.power import is_even
from detcheck.kernels.cpu.queries import FLASH_OP
from detcheck.kernels.overrides import op_names
from detcheck.kernels.settings import OP_FAMILIES

_HALF = (torch.bfloat16, torch.float16)
MOVES = frozenset(
    {
        *("embedding", "index", "index_select", "gather", "scatter", "cat", "stack", "copy_"),
        *("clone", "_to_copy", "contiguous", "constant_pad_nd", "repeat", "roll", "flip", "tril"),
        *("triu", "where", "masked_fill", "masked_fill_", "fill_", "zero_", "arange", "full"),
        *("full_like", "zeros", "zeros_like", "ones", "ones_like", "scalar_tensor", "empty", "eye"),
        *("empty_like", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full"),
        *("_unsafe_view", "index_put_", "index_copy_", "lift_fresh", "_reshape_alias", "split"),
        *("split_with_sizes", "unbind", "chunk", "resize_", "_local_scalar_dense", "equal"),
        *("detach_", "set_", "scatter_", "masked_scatter", "slice_scatter", "select_scatter"),
        *("repeat_interleave", "complex", "unsafe_split", "unsafe_chunk", "transpose_", "t_"),
        *("squeeze_", "unsqueeze_", "swapdims_", "as_strided_", "narrow_copy", "unfold_copy"),
    }
)
"""aten ops that put values elsewhere and compute none."""
EVEN = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "neg", "abs", "reciprocal", "sqrt", "square", "sign"),
        *("exp", "expm1", "log", "log1p", "log2", "log10", "erf", "erfc", "erfinv", "sin", "cos"),
        *("tan", "asin", "acos", "atan", "asinh", "acosh", "tanh", "sinc", "lgamma", "frac"),
        "relu",
        *("celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "floor"),
        *("log_sigmoid_forward", "ceil", "round", "trunc", "clamp", "clamp_min", "clamp_max"),
        *("minimum", "maximum", "lerp", "addcmul", "addcdiv", "nan_to_num", "threshold"),
    }
)
"""Entry-by-entry ops whose vector and scalar kernels round alike on the CPU, in every float dtype.

An entry's place decides which of the two computes it, and so does the batch. For ops whose two
kernels differ, such as silu or exp2, our own kernels use only one."""
ROW_BY_ROW = {
    "cpu": frozenset(
        {
            *("native_layer_norm", "_log_softmax", "cumsum", "max", "min", "amax", "amin"),
            "_cdist_forward",  # pair by pair
        }
    ),
    "cuda": frozenset({"max", "min", "amax", "amin"}),
}
"""Ops whose stock kernels, by device, take each row by itself, in one order.

On a GPU rows are cut by their number, but the largest entry is the same in any order, and among
equal ones PyTorch takes the first.
"""
COUNTS = frozenset({"histc"})
"""aten ops that count entries in floats: exact, in whatever order."""
PAST_THE_INTERFACE = ("bmm", FLASH_OP)
"""Ops of attention that was not called through transformers' interface.

Padding matters to them; not to bmm over heads of usual size, whose sums run in order."""


class OpRules:
    """The rules for one device type (`cpu` or `cuda`) and one model's weights."""

    def __init__(self, device: str, weights: Iterable[torch.Tensor]):
        self._on_cpu = device == "cpu"
        self._row_by_row = ROW_BY_ROW.get(device, frozenset())
        self._weights = {_address(weight) for weight in weights} - {None}
        self._served = {name: family for family in OP_FAMILIES for name in op_names(family, device)}
        self._served[PACKED_OP] = "matmul"
        if self._on_cpu:
            self._served["aten::_safe_softmax"] = "softmax"  # calls the softmax that is overridden

    def reason(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> str | None:
        """Why a call of the op `func` that gave `result` is invariant; None if it is not."""
        namespace, _, op = func._schema.name.partition("::")
        overload = func._schema.overload_name
        full_name = f"{namespace}::{op}.{overload}" if overload else f"{namespace}::{op}"
        entry_by_entry = torch.Tag.pointwise in func.tags or op == "log_sigmoid_forward"  # untagged
        even = entry_by_entry and (not self._on_cpu or _even(op, args, kwargs))
        reasons = {
            "moves values only": func.is_view
            or (namespace == "aten" and op in MOVES and not _adds(func, args, kwargs)),
            "gives whole numbers": not _gives_floats(result) or op in COUNTS,
            f"the {self._served.get(full_name)} kernels": self._is_served(full_name, op, args),
            "stock, row by row": namespace == "aten" and op in self._row_by_row,
            "adds once to each row": op == "index_add_" and _all_different(args[2]),
            "adds equally often to each row, in order": self._on_cpu and _adds_evenly(op, args),
            "adds one after the other": self._on_cpu and op in MOVES and not _races(op, args),
            "stock, entry by entry": even,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _is_served(self, full_name: str, op: str, args: Sequence[Any]) -> bool:
        """True if a kernel of ours serves the call, and the batch is the dim that it expects.

        Sums of one product are even, as those of the rotary embedding; sums over keys run in order.
        """
        if op == FLASH_OP or any(_is_sparse(x) for x in args):
            return False
        if op == "bmm" and not self._on_cpu and args[0].shape[2] > 1:
            usual = can_multiply(args[0], args[1]) or self._holds_weights(args[1])
            return usual and full_name in self._served
        if op == "mm" and not self._on_cpu and self._holds_weights(args[0]):
            return is_weight(args[0])  # on the CPU any batch along N is held
        return full_name in self._served

    def _holds_weights(self, x: torch.Tensor) -> bool:
        return _address(x) in self._weights


def name_of(func: Any) -> str:
    """The name under which an op that is not invariant is reported, such as `aten::topk`."""
    name: str = func._schema.name
    if name.removeprefix("aten::") in PAST_THE_INTERFACE:
        return f"{name} past the attention interface"
    return name


def _is_sparse(x: Any) -> bool:
    """True for tensors whose ops have other stock kernels than those that are overridden."""
    return isinstance(x, torch.Tensor) and x.layout != torch.strided


def _address(x: torch.Tensor) -> int | None:
    """Where a tensor's memory starts; None for tensors that have no memory of their own."""
    try:
        return x.untyped_storage().data_ptr() or None
    except RuntimeError:
        return None


def _adds(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True if a call that writes at indices adds to, or multiplies, the values that are there."""
    given = {each.name: value for each, value in zip(func._schema.arguments, args, strict=False)}
    given.update(kwargs)
    return bool(given.get("accumulate") or given.get("reduce"))


def _races(op: str, args: Sequence[Any]) -> bool:
    """True if threads may add to one entry of a float32 tensor on the CPU, in any order."""
    return op == "index_put_" and args[0].dtype == torch.float32


def _all_different(index: torch.Tensor) -> bool:
    return len(index.unique()) == len(index)


def _adds_evenly(op: str, args: Sequence[Any]) -> bool:
    """True if `index_add` adds the same number of rows to each, as of a token's experts.

    The stock kernel on the CPU adds them one after the other, in the order of the index.
    """
    if op not in ("index_add", "index_add_"):
        return False
    x, dim, index = args[:3]
    times = index.bincount(minlength=x.shape[dim])
    return x.dim() > 1 and bool((times == times[0]).all())


def _even(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True if an entry-by-entry op on the CPU rounds each entry alike, wherever the entry is."""
    op = op.removesuffix("_")
    half = any(isinstance(x, torch.Tensor) and x.dtype in _HALF for x in args)
    if any(isinstance(x, torch.Tensor) and x.is_complex() for x in args):
        return False  # products of complex entries round differently in vectors
    if op == "pow":
        exponent = args[1]
        if not isinstance(exponent, int | float):
            return False
        return is_even(exponent, *(x.dtype for x in args if isinstance(x, torch.Tensor)))
    if kwargs.get("alpha", 1) != 1 and half:
        return False
    return op in EVEN


def _gives_floats(result: Any) -> bool:
    results = result if isinstance(result, list | tuple) else (result,)
    tensors = (x for x in results if isinstance(x, torch.Tensor))
    return any(x.is_floating_point() or x.is_complex() for x in tensors)
