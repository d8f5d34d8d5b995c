"""Every stock op that has a batch-invariant kernel, by op family; and how one is put in place.

A new kernel is one line here: an aten op goes into `ATEN` under its family and dispatch key, the
attention interface has an entry of its own.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.attention import attention
from detcheck.kernels.cpu import complex_numbers as cpu_complex
from detcheck.kernels.cpu import convolution as cpu_convolution
from detcheck.kernels.cpu import flash as cpu_flash
from detcheck.kernels.cpu import grouped as cpu_grouped
from detcheck.kernels.cpu import matmul as cpu_matmul
from detcheck.kernels.cpu import norm as cpu_norm
from detcheck.kernels.cpu import one_by_one as cpu_one_by_one
from detcheck.kernels.cpu import pointwise as cpu_pointwise
from detcheck.kernels.cpu import power as cpu_power
from detcheck.kernels.cpu import recurrent as cpu_recurrent
from detcheck.kernels.cpu import reduce as cpu_reduce
from detcheck.kernels.cpu import softmax as cpu_softmax
from detcheck.kernels.cpu import topk as cpu_topk
from detcheck.kernels.cpu import triangular as cpu_triangular
from detcheck.kernels.cpu.any_mask import scaled_dot_product_attention
from detcheck.kernels.cpu.linear import decomposed as decomposed_linear
from detcheck.kernels.cpu.linear import linear as cpu_linear
from detcheck.kernels.experts import EXPERTS_OP, experts, put_in_table
from detcheck.kernels.folding import fold_batches
from detcheck.kernels.fused.calls import counter
from detcheck.kernels.one_formula import keep_formulas
from detcheck.kernels.settings import PREFILL
from detcheck.kernels.triton import why_unavailable

Kernel = Callable[..., Any]
COMPOSITE = "CompositeImplicitAutograd"
"""The dispatch key of ops that are made of others on every device."""

ATEN: dict[str, dict[str, dict[str, Kernel]]] = {
    "matmul": {
        "CPU": cpu_matmul.KERNELS
        | cpu_grouped.KERNELS
        | cpu_convolution.KERNELS
        | cpu_triangular.KERNELS
        | cpu_one_by_one.KERNELS,
        COMPOSITE: cpu_recurrent.KERNELS,
    },
    "attention": {"CPU": cpu_flash.KERNELS},
    "norm": {"CPU": cpu_norm.KERNELS},
    "softmax": {"CPU": cpu_softmax.KERNELS},
    "reduce": {"CPU": cpu_reduce.KERNELS | cpu_topk.KERNELS},
    "pointwise": {"CPU": cpu_pointwise.KERNELS | cpu_power.KERNELS | cpu_complex.KERNELS},
}
"""Op family, then dispatch key, then aten op; `kernels_of` adds those for CUDA."""

ATTENTION_NAME = "sdpa"
"""Entry of transformers' attention table that both static and continuous batching use."""
FLEX_NAME = "flex_attention"
ATTENTION_NAMES = (ATTENTION_NAME, "paged|sdpa", "eager", "paged|eager", FLEX_NAME)
"""All entries that we serve. `paged|sdpa` is for continuous batching in transformers 5.17.

`flex_attention` gets the masks of `sdpa` meanwhile: its own are a code that only it reads.

`eager` has no entry in stock transformers: models that have no `sdpa` (with sinks or soft caps)
then call a function of their own, which an entry replaces."""
ATTENTION_OP = f"transformers::{ATTENTION_NAME}"
FUNCTION_OP = "aten::scaled_dot_product_attention"
LINEAR_OP = "aten::linear"
_ATTENTION_OPS = {"attention": ATTENTION_OP, PREFILL: f"{ATTENTION_OP}, query by query"}
"""The families that transformers' attention table serves, with the names of their calls."""


def kernels_of(family: str) -> dict[str, dict[str, Kernel]]:
    """Dispatch key, then aten op; Triton is imported only if it can run."""
    tables = ATEN.get(family, {})
    if why_unavailable() is not None:
        return tables
    from detcheck.kernels.triton.ops import KERNELS

    return {**tables, "CUDA": KERNELS.get(family, {})}


def op_names(family: str, device: str | None = None) -> tuple[str, ...]:
    """The ops that a family overrides on a device type such as `cuda`, or on any: `aten::mm`."""
    of_device = (
        table
        for key, table in kernels_of(family).items()
        if device is None or key == device.upper() or (key, device) == (COMPOSITE, "cpu")
    )
    names = dict.fromkeys(f"aten::{op}" for table in of_device for op in table)
    if family in _ATTENTION_OPS:
        function = (FUNCTION_OP,) if family == "attention" else ()
        return (_ATTENTION_OPS[family], *function, *names)
    return (LINEAR_OP, EXPERTS_OP, *names) if family == "matmul" else tuple(names)


def install(family: str, calls: Counter[str]) -> Callable[[], None]:
    """Override a family's ops, counting their calls; returns what restores the stock ops."""
    stack = ExitStack()
    try:
        stack.callback(_install_aten(family, calls))
        if family == "matmul":
            stack.callback(fold_batches())
            stack.callback(keep_formulas())
            stack.callback(_install_linear(calls))
            stack.enter_context(_without_splits())
            stack.callback(put_in_table(_counted(EXPERTS_OP, experts, calls)))
        if family == "pointwise":
            stack.callback(_install_powers())
        if family in _ATTENTION_OPS:
            stack.callback(_attention.hold(family, calls))
        if family == "attention":
            stack.callback(_without_fast_path())
            stack.callback(_install_function(calls))
    except BaseException:
        stack.close()
        raise
    return stack.close


def _install_aten(family: str, calls: Counter[str]) -> Callable[[], None]:
    library = torch.library.Library("aten", "IMPL")
    for key, table in kernels_of(family).items():
        for op, kernel in table.items():
            _override(library, op, _counted(f"aten::{op}", kernel, calls), key)
    return library._destroy


def _override(library: torch.library.Library, op: str, kernel: Kernel, key: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid.*", category=UserWarning)
        library.impl(op, kernel, key)


def _install_linear(calls: Counter[str]) -> Callable[[], None]:
    """Replace Python's function, and the op that C++ and scripts call: it calls `mm` or `addmm`."""
    stock_linear = F.linear
    F.linear = _scripted_as("aten::linear", _counted_linear(_linear(), calls))
    library = torch.library.Library("aten", "IMPL")
    _override(library, "linear", decomposed_linear, COMPOSITE)

    def remove() -> None:
        F.linear = stock_linear
        library._destroy()

    return remove


def _without_splits() -> AbstractContextManager[None]:
    """Let PyTorch's library for products on a GPU not split sums, if there is one that is used."""
    if why_unavailable() is not None:
        return nullcontext()
    from detcheck.kernels.triton import cublas, cublas_settings

    return cublas_settings.without_splits() if cublas.is_enabled() else nullcontext()


def _install_function(calls: Counter[str]) -> Callable[[], None]:
    """Serve models that call PyTorch's function instead of transformers' interface."""
    stock = F.scaled_dot_product_attention
    ours = _counted(FUNCTION_OP, scaled_dot_product_attention, calls)
    F.scaled_dot_product_attention = _scripted_as(FUNCTION_OP, ours)

    def remove() -> None:
        F.scaled_dot_product_attention = stock

    return remove


def _install_powers() -> Callable[[], None]:
    """Let `pow` and `**` look at their exponent: see `cpu/power.py`."""
    stack = ExitStack()
    for holder, name in cpu_power.FUNCTIONS:
        stock = getattr(holder, name)
        if name in vars(holder):
            stack.callback(setattr, holder, name, stock)
        else:
            stack.callback(delattr, holder, name)
        setattr(holder, name, _scripted_as("aten::pow", cpu_power.watched(stock)))
    return stack.close


def _scripted_as(op: str, function: Kernel) -> Kernel:
    """`function`; TorchScript, which cannot compile it, takes `op` for it."""
    table: dict[int, str] = torch.jit._builtins._get_builtin_table()
    table[id(function)] = op
    weakref.finalize(function, table.pop, id(function), None)  # another object may get its id
    return function


def _without_fast_path() -> Callable[[], None]:
    """Let `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` call ops that have kernels.

    In inference they have fused kernels of their own, in which rows depend on the batch.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return partial(torch.backends.mha.set_fastpath_enabled, before)


class _AttentionTable:
    """transformers' attention table, with our entry in it while a family holds it.

    The entry depends on the families held now: `prefill` makes it compute query by query. So
    families may be released in any order.
    """

    def __init__(self) -> None:
        self._stock: dict[str, Any] = {}
        self._calls: dict[str, Counter[str]] = {}
        self._restore_masks: Callable[[], None] | None = None

    def hold(self, family: str, calls: Counter[str]) -> Callable[[], None]:
        """Put our entry in place, counting its calls; returns what releases the family."""
        from transformers import AttentionInterface

        table: dict[str, Any] = AttentionInterface._global_mapping
        if not self._calls:
            self._stock = {name: table[name] for name in ATTENTION_NAMES if name in table}
            self._restore_masks = _flex_with_masks_of_sdpa()
        self._calls[family] = calls
        table.update(self._entries())

        def release() -> None:
            del self._calls[family]
            for name in ATTENTION_NAMES:
                table.pop(name, None)
            table.update(self._entries())
            if not self._calls and self._restore_masks is not None:
                self._restore_masks()

        return release

    def _entries(self) -> dict[str, Any]:
        if not self._calls:
            return self._stock
        entry: Kernel = attention
        if PREFILL in self._calls:
            entry = partial(attention, query_by_query=True)
        for family, calls in self._calls.items():
            entry = _counted(_ATTENTION_OPS[family], entry, calls)
        return dict.fromkeys((*self._stock, "eager"), self._described(entry))

    def _described(self, entry: Any) -> Kernel:
        """The entry, with what `fused/` needs to serve a call in its place."""
        calls = {each: {_ATTENTION_OPS[each]: 1} for each in self._calls}
        entry.query_by_query = PREFILL in self._calls
        entry.count = counter(self._calls, calls)
        described: Kernel = entry
        return described


def _flex_with_masks_of_sdpa() -> Callable[[], None]:
    """Let `flex_attention` get the masks that `sdpa` gets; returns what undoes it."""
    from transformers import AttentionMaskInterface

    table: dict[str, Any] = AttentionMaskInterface._global_mapping
    stock = table.get(FLEX_NAME)
    if stock is None:
        return lambda: None
    table[FLEX_NAME] = table[ATTENTION_NAME]
    return partial(table.__setitem__, FLEX_NAME, stock)


_attention = _AttentionTable()


def _linear() -> Kernel:
    """The shortcut for linear layers, on whichever device the input is."""
    if why_unavailable() is not None:
        return cpu_linear
    from detcheck.kernels.triton.linear import linear as cuda_linear

    def linear(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return (cuda_linear if input.is_cuda else cpu_linear)(input, weight, bias)

    return linear


def _counted_linear(kernel: Kernel, calls: Counter[str]) -> Kernel:
    """As `_counted`, without the cost of variable arguments."""

    def counted(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        calls[LINEAR_OP] += 1
        result: torch.Tensor = kernel(input, weight, bias)
        return result

    return counted


def _counted(name: str, kernel: Kernel, calls: Counter[str]) -> Kernel:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return kernel(*args, **kwargs)

    return counted
