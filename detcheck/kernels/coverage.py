"""Which ops of a model the batch-invariant kernels do not cover, found by a short forward pass.

An op is covered where a kernel of ours serves it, where it computes nothing (views, copies,
gathers), where it gives whole numbers or truth values, or where it works entry by entry and rounds
each entry alike wherever it stands. Whatever else runs, by whatever name it goes, is not: quantised
products, expert routing, convolutions, scans, attention that does not go through transformers'
interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.errors import UsageError
from detcheck.kernels.cpu.linear import OP as PACKED_OP
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.module_path import ModulePath
from detcheck.kernels.overrides import ATTENTION_NAMES, op_names
from detcheck.kernels.settings import OP_FAMILIES

PROBE_TOKENS = 3
_HALF = (torch.bfloat16, torch.float16)
MOVES = frozenset(
    {
        *("embedding", "index", "index_select", "gather", "scatter", "cat", "stack", "copy_"),
        *("clone", "_to_copy", "contiguous", "constant_pad_nd", "repeat", "roll", "flip", "tril"),
        *("triu", "where", "masked_fill", "masked_fill_", "fill_", "zero_", "arange", "full"),
        *("full_like", "zeros", "zeros_like", "ones", "ones_like", "scalar_tensor", "empty"),
        *("empty_like", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full"),
        *("_unsafe_view", "index_put_", "index_copy_", "lift_fresh", "_reshape_alias", "split"),
        *("split_with_sizes", "unbind", "chunk", "resize_", "_local_scalar_dense", "equal"),
    }
)
"""aten ops that put values elsewhere and compute none."""
EVEN = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "neg", "abs", "reciprocal", "sqrt", "square", "sign"),
        *("exp", "expm1", "log", "log1p", "log2", "erf", "sin", "cos", "tanh", "relu", "celu"),
        *("leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "log_sigmoid_forward", "floor"),
        *("ceil", "round", "trunc", "clamp", "clamp_min", "clamp_max", "minimum", "maximum"),
        *("lerp", "addcmul", "addcdiv", "nan_to_num", "threshold"),
    }
)
"""Entry-by-entry ops whose vector and scalar kernels round alike on the CPU, in every float dtype.

Which of the two an entry meets depends on its place, and so on the batch: of exp2, cosh or
softshrink they differ, of silu and its like our own kernels see to it."""
EVEN_POWERS = (0, 0.5, 1, 2, 3, -1, -2)
"""Exponents of which the same holds for pow; -0.5 in float32 only."""
ROW_BY_ROW = {"cpu": frozenset({"native_layer_norm", "_log_softmax", "cumsum"})}
"""Ops whose stock kernels, by device, take each row by itself, in one order."""


@dataclass(frozen=True, slots=True)
class Uncovered:
    """An op that nothing here makes invariant, and the first module in which it ran."""

    op: str
    """Such as `aten::topk`."""
    module: str


def require_coverage(model: torch.nn.Module, name: str, longest: int = 0) -> None:
    """Refuse a model that the whole batch-invariant mode cannot make invariant.

    Runs a forward pass of a few tokens. `longest` is the number of tokens of the longest request.
    Raises UsageError that names the first such op.
    """
    limit = rescaled_beyond(model)
    if limit is not None and longest > limit:
        raise UsageError(
            f"{name} rescales the positions of a whole batch once one request in it is longer than "
            f"{limit} tokens, and the longest here may have {longest}: use shorter prompts, lower "
            '`max_new_tokens`, or use `kernels="stock"`.'
        )
    found = uncovered(model)
    if found:
        first, more = found[0], len(found) - 1
        others = f" and {more} more" if more else ""
        raise UsageError(
            f"{name} runs {first.op} (in {first.module or 'the model itself'}){others}, which the "
            'batch-invariant kernels do not cover: use `kernels="stock"`, or name the families to '
            f'cover, such as `kernels="batch-invariant:{OP_FAMILIES[0]}+{OP_FAMILIES[1]}"`.'
        )


def uncovered(model: torch.nn.Module) -> tuple[Uncovered, ...]:
    """Every op of a short forward pass of a causal model that is not covered, once each."""
    device = next(model.parameters()).device
    input_ids = torch.arange(1, PROBE_TOKENS + 1, device=device)[None]
    # Not inference mode: there, composite ops are not seen as what they are made of.
    with batch_invariant(), torch.no_grad(), _watched_attention() as inside:
        model(input_ids=input_ids, use_cache=False)  # tables that are made once are made here
        watch = _Watch(model, inside)
        with watch:
            model(input_ids=input_ids, use_cache=False)
    return tuple(watch.found.values())


def rescaled_beyond(model: Any) -> int | None:
    """Tokens of one request from which on all others get another rotary embedding; None: never."""
    config = model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One for all layers, or one by kind of layer.
    each = [rope for rope in (given, *given.values()) if isinstance(rope, dict)]
    own = getattr(config, "original_max_position_embeddings", None)
    limits = [
        rope.get("original_max_position_embeddings") or own or config.max_position_embeddings
        for rope in each
        if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


@contextmanager
def _watched_attention() -> Iterator[list[bool]]:
    """Tell when our attention runs: what it calls within is its own business."""
    from transformers import AttentionInterface

    table: dict[str, Any] = AttentionInterface._global_mapping
    inside: list[bool] = []
    entries = {name: table[name] for name in ATTENTION_NAMES if name in table}

    def watched(function: Any) -> Any:
        def attend(*args: Any, **kwargs: Any) -> Any:
            inside.append(True)
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()

        return attend

    table.update({name: watched(function) for name, function in entries.items()})
    try:
        yield inside
    finally:
        table.update(entries)


class _Watch(TorchDispatchMode):
    """Keeps the ops that are not covered, with the module that was computing."""

    def __init__(self, model: torch.nn.Module, inside_attention: list[bool]):
        super().__init__()
        self.found: dict[str, Uncovered] = {}
        self._inside_attention = inside_attention
        self._module_path = ModulePath(model)
        self._following = self._module_path.follow()
        self._served = {name for family in OP_FAMILIES for name in op_names(family)} | {PACKED_OP}
        device = next(model.parameters()).device.type
        self._on_cpu = device == "cpu"
        self._row_by_row = ROW_BY_ROW.get(device, frozenset())

    def __enter__(self) -> Any:
        self._following.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._following.__exit__(None, None, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside_attention and not self._covered(func, args, kwargs or {}, result):
            name = func._schema.name
            if name == "aten::bmm":
                name += " past the attention interface"
            self.found.setdefault(name, Uncovered(name, self._module_path.current))
        return result

    def _covered(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> bool:
        namespace, _, op = func._schema.name.partition("::")
        if func.is_view or not _gives_floats(result):
            return True
        if op == "bmm":  # of the rotary embedding: sums of one product
            return args[0].shape[2] <= 1
        overload = func._schema.overload_name
        if (f"{namespace}::{op}.{overload}" if overload else f"{namespace}::{op}") in self._served:
            return True
        if namespace == "aten" and (op in MOVES or op in self._row_by_row):
            return True
        return torch.Tag.pointwise in func.tags and (not self._on_cpu or _even(op, args, kwargs))


def _even(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an entry-by-entry op on the CPU rounds each entry alike wherever it stands."""
    op = op.removesuffix("_")
    half = any(isinstance(x, torch.Tensor) and x.dtype in _HALF for x in args)
    if op == "pow":
        exponent = args[1]
        if not isinstance(exponent, int | float):
            return False
        return exponent in EVEN_POWERS or (exponent == -0.5 and not half)
    if kwargs.get("alpha", 1) != 1 and half:
        return False
    return op in EVEN


def _gives_floats(result: Any) -> bool:
    results = result if isinstance(result, list | tuple) else (result,)
    return any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in results)
