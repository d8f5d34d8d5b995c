"""Which ops of a model the batch-invariant kernels do not cover, found by a short forward pass.

An op is covered where a kernel of ours serves it, where it computes nothing (views, copies,
gathers), where it gives whole numbers or truth values, or where it works entry by entry and rounds
each entry alike wherever it stands. Whatever else runs, by whatever name it goes, is not: quantised
products, convolutions, scans, attention that does not go through transformers' interface.

The pass is a prefill without padding, one with it, and a decoding step with the cache. A model
whose ops are all covered may still depend on its padding by what it computes: so the bits of the
padded row are compared as well.
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
from detcheck.kernels.overrides import ATTENTION_NAMES, ATTENTION_OP, op_names
from detcheck.kernels.settings import BATCH_INVARIANT, FAMILIES, FULLY_INVARIANT, OP_FAMILIES
from detcheck.kernels.short_runs import alone, decoding_agrees, padded_and_decoded

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
        *("scatter_", "masked_scatter", "slice_scatter", "select_scatter", "repeat_interleave"),
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
ROW_BY_ROW = {"cpu": frozenset({"native_layer_norm", "_log_softmax", "cumsum", "topk"})}
"""Ops whose stock kernels, by device, take each row by itself, in one order.

Among equal entries topk takes those that the same row alone would give."""


@dataclass(frozen=True, slots=True)
class Uncovered:
    """An op that nothing here makes invariant, and the first module in which it ran."""

    op: str
    """Such as `aten::convolution`."""
    module: str


@dataclass(slots=True)
class CoveredOp:
    """An op that ran and is invariant."""

    op: str
    by: str
    """Such as `the matmul kernels`, or `moves values only`."""
    module: str
    """The first module in which it ran."""
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Coverage:
    """All ops of a short run of a model, in the order in which they first ran."""

    covered: tuple[CoveredOp, ...]
    uncovered: tuple[Uncovered, ...]
    padding_matters: bool
    """True if a row gave other bits with padding than without, under the batch-invariant mode."""


def require_coverage(model: torch.nn.Module, name: str, longest: int = 0) -> None:
    """Refuse a model that the whole batch-invariant mode cannot make invariant.

    Runs a few forward passes of a few tokens. `longest` is the number of tokens of the longest
    request. Raises UsageError that names the first op that is not covered.
    """
    sentence = why_refused(model, name, longest)
    if sentence is not None:
        raise UsageError(sentence)


def why_refused(model: torch.nn.Module, name: str, longest: int = 0) -> str | None:
    """What is wrong and what to do, in a sentence, if a model is not covered; else None."""
    limit = rescaled_beyond(model)
    if limit is not None and longest > limit:
        return (
            f"{name} rescales the positions of a whole batch once one request in it is longer than "
            f"{limit} tokens, and the longest here may have {longest}: use shorter prompts, lower "
            '`max_new_tokens`, or use `kernels="stock"`.'
        )
    window = shortest_window(model)
    if window is not None and window < longest and next(model.parameters()).is_cuda:
        return (
            f"{name} has windows of {window} tokens, and the longest request here may have "
            f"{longest}, which the kernels for GPUs do not cover: use shorter prompts, lower "
            '`max_new_tokens`, `device="cpu"`, or `kernels="stock"`.'
        )
    return refusal(coverage(model), name)


def refusal(found: Coverage, name: str) -> str | None:
    """The sentence for a model's coverage; None if all of it is covered."""
    if found.uncovered:
        first, more = found.uncovered[0], len(found.uncovered) - 1
        others = f" and {more} more" if more else ""
        return (
            f"{name} runs {first.op} (in {first.module or 'the model itself'}){others}, which the "
            'batch-invariant kernels do not cover: use `kernels="stock"`, or name the families to '
            f'cover, such as `kernels="batch-invariant:{OP_FAMILIES[0]}+{OP_FAMILIES[1]}"`.'
        )
    if found.padding_matters:
        return (
            f"{name} computes with its padding: a padded row gives other bits than the same row "
            'alone, whatever the kernels. Use `kernels="stock"`.'
        )
    return None


def uncovered(model: torch.nn.Module) -> tuple[Uncovered, ...]:
    """Every op of a short run of a causal model that is not covered, once each."""
    return coverage(model).uncovered


def coverage(model: torch.nn.Module) -> Coverage:
    """Run a causal model on a few tokens under the batch-invariant mode and watch its ops.

    Raises UsageError if attention meets a feature that it does not cover, or if the run fails.
    """
    # Not inference mode: there, composite ops are not seen as what they are made of.
    with batch_invariant(), torch.no_grad(), _watched_attention() as inside:
        watch = _Watch(model, inside)
        try:
            alone(model)  # tables that are made once are made here
            with watch:
                row = alone(model)
                padded = padded_and_decoded(model)
        except UsageError:
            raise
        except Exception as error:  # of the model's own code, which may be of any kind
            if watch.found:  # the ops up to there are reason enough
                return Coverage(tuple(watch.covered.values()), tuple(watch.found.values()), False)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:150]
            raise UsageError(
                f"A short run of this model failed, so its ops are not known ({reason}): use "
                '`kernels="stock"`.'
            ) from error
    return Coverage(
        tuple(watch.covered.values()), tuple(watch.found.values()), not torch.equal(row, padded)
    )


def level_held(model: torch.nn.Module) -> str:
    """The highest level that a covered model held in a short run.

    `fully-invariant` if decoding gives the bits of one forward pass; else `batch-invariant`.
    """
    with batch_invariant(FAMILIES), torch.no_grad():
        return FULLY_INVARIANT if decoding_agrees(model) else BATCH_INVARIANT


def shortest_window(model: Any) -> int | None:
    """Keys that a query of the model's narrowest layers sees; None if all see everything."""
    config = model.config.get_text_config()
    sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in sizes if isinstance(size, int)), default=None)


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
        self.covered: dict[str, CoveredOp] = {}
        self._inside_attention = inside_attention
        self._module_path = ModulePath(model)
        self._following = self._module_path.follow()
        self._served = {name: family for family in OP_FAMILIES for name in op_names(family)}
        self._served[PACKED_OP] = "matmul"
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
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
        name, module = func._schema.name, self._module_path.current
        if self._inside_attention:
            self._keep(ATTENTION_OP, "the attention kernels", module)
            return result
        by = self._covered_by(func, args, kwargs or {}, result)
        if by is not None:
            self._keep(name, by, module)
        else:
            name += " past the attention interface" if name == "aten::bmm" else ""
            self.found.setdefault(name, Uncovered(name, module))
        return result

    def _keep(self, op: str, by: str, module: str) -> None:
        self.covered.setdefault(op, CoveredOp(op, by, module)).calls += 1

    def _covered_by(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> str | None:
        """What makes a call invariant; None if nothing does."""
        namespace, _, op = func._schema.name.partition("::")
        overload = func._schema.overload_name
        full_name = f"{namespace}::{op}.{overload}" if overload else f"{namespace}::{op}"
        even = torch.Tag.pointwise in func.tags and (not self._on_cpu or _even(op, args, kwargs))
        served = full_name in self._served
        if op == "bmm":  # by weights, or of the rotary embedding: sums of one product
            served = self._sums_no_keys(args)
        reasons = {
            "moves values only": func.is_view or (namespace == "aten" and op in MOVES),
            "gives whole numbers": not _gives_floats(result),
            f"the {self._served.get(full_name, 'matmul')} kernels": served,
            "stock, row by row": namespace == "aten" and op in self._row_by_row,
            "adds once to each row": op == "index_add_" and _all_different(args[2]),
            "stock, entry by entry": even,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _sums_no_keys(self, args: Sequence[Any]) -> bool:
        """True if a batch of products sums over a dimension that no request makes longer."""
        left, right = args[0], args[1]
        return left.shape[2] <= 1 or right.untyped_storage().data_ptr() in self._weights


def _all_different(index: torch.Tensor) -> bool:
    return len(index.unique()) == len(index)


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
