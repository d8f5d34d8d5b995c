"""Which ops of a model the batch-invariant kernels do not cover, found by a short forward pass.

An op is covered where a kernel of ours serves it, where it computes nothing (views, copies,
gathers), where it gives whole numbers or truth values, or where it works entry by entry. Whatever
else runs, by whatever name it goes, is not: quantised products, expert routing, convolutions,
scans, attention that does not go through transformers' interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.errors import UsageError
from detcheck.experiment import OP_FAMILIES
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.overrides import ATTENTION_NAME, PAGED_ATTENTION_NAME, op_names

PROBE_TOKENS = 3
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
ROW_BY_ROW = {"cpu": frozenset({"native_layer_norm", "_log_softmax", "cumsum"})}
"""Ops whose stock kernels, by device, take each row by itself, in one order."""


@dataclass(frozen=True, slots=True)
class Uncovered:
    """An op that nothing here makes invariant, and the first module in which it ran."""

    op: str
    """Such as `aten::topk`."""
    module: str


def require_coverage(model: torch.nn.Module, name: str) -> None:
    """Refuse a model that the whole batch-invariant mode cannot make invariant.

    Runs a forward pass of a few tokens. Raises UsageError that names the first such op.
    """
    found = uncovered(model)
    if found:
        first, more = found[0], len(found) - 1
        others = f" and {more} more" if more else ""
        raise UsageError(
            f"{name} runs {first.op} (in {first.module or 'the model itself'}){others}, which the "
            "batch-invariant kernels do not cover: use --kernels stock, or name the families that "
            f"matter, such as batch-invariant:{OP_FAMILIES[0]}+{OP_FAMILIES[1]}."
        )


def uncovered(model: torch.nn.Module) -> tuple[Uncovered, ...]:
    """Every op of a short forward pass of a causal model that is not covered, once each."""
    device = next(model.parameters()).device
    input_ids = torch.arange(1, PROBE_TOKENS + 1, device=device)[None]
    # Not inference mode: there, composite ops are not seen as what they are made of.
    with batch_invariant(), torch.no_grad(), _watched_attention() as inside:
        watch = _Watch(model, inside)
        with watch:
            model(input_ids=input_ids, use_cache=False)
    return tuple(watch.found.values())


@contextmanager
def _watched_attention() -> Iterator[list[bool]]:
    """Tell when our attention runs: what it calls within is its own business."""
    from transformers import AttentionInterface

    table: dict[str, Any] = AttentionInterface._global_mapping
    inside: list[bool] = []
    entries = {
        name: table[name] for name in (ATTENTION_NAME, PAGED_ATTENTION_NAME) if name in table
    }

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
        self._model = model
        self._inside_attention = inside_attention
        self._path: list[str] = [""]
        self._hooks: list[Any] = []
        self._served = {name for family in OP_FAMILIES for name in op_names(family)}
        self._row_by_row = ROW_BY_ROW.get(next(model.parameters()).device.type, frozenset())

    def __enter__(self) -> Any:
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside_attention and not self._covered(func, result):
            name = func._schema.name
            self.found.setdefault(name, Uncovered(name, self._path[-1]))
        return result

    def _covered(self, func: Any, result: Any) -> bool:
        namespace, _, op = func._schema.name.partition("::")
        if func.is_view or torch.Tag.pointwise in func.tags:
            return True
        if not _gives_floats(result):
            return True
        overload = func._schema.overload_name
        served = {f"{namespace}::{op}", f"{namespace}::{op}.{overload}"} & self._served
        return bool(served) or (namespace == "aten" and (op in MOVES or op in self._row_by_row))

    def _entering(self, name: str) -> Any:
        return lambda *_: self._path.append(name)

    def _leaving(self, *_: Any) -> None:
        self._path.pop()


def _gives_floats(result: Any) -> bool:
    results = result if isinstance(result, list | tuple) else (result,)
    return any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in results)
