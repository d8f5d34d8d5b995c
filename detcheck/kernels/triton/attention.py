"""Batch-invariant causal attention on the GPU, for packed requests and for padded batches.

A query's result depends on its own position and its own keys, and on nothing else:

- Keys are taken in blocks of `block_n` from position 0 of the request, and every SPLIT keys form
  a partial result of their own (1000 keys are 256 + 256 + 256 + 232). Partial results are merged
  in order. Splits have a fixed size at absolute positions, never a fixed count.
- One program may compute all splits of a query in turn, or each split may have its own program
  (`parallel`, for long contexts with few queries). The arithmetic is the same, so this choice
  changes no bit and may follow the load.
- A window or a chunk makes a query see an interval of positions. Keys before it have weight 0 in
  the blocks in which they lie, and blocks before it are left out. Both change no bit of a sum. If a
  cache has dropped those keys, the positions of the others still say where blocks begin.
- A sink joins a finished sum, as a key without a value.
- Queries are tiled by absolute position (positions 0 … 15, 16 … 31, …), whichever part of a tile a
  call has. So a decoded token meets the same blocks and masks as in a prefill of the whole prompt
  or of any chunk: `chunking` and `prefill-decode` hold too.

The heads that share a key-value head are rows of one tile (16 positions of 4 heads fill the 64
rows that `wgmma` computes at least), so keys are read once for all of them.

Lengths stay on the device. The grid is bounded from the shapes, and programs without work end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from detcheck.errors import UsageError
from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import attention_layout
from detcheck.kernels.triton.attention_form import AttentionForm, Call, States, strides
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.attention_shapes import Shape, Shapes, block_d, shapes
from detcheck.kernels.triton.bit_class import BitClass, milliseconds
from detcheck.kernels.triton.launch import capability, capturing, keep

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEAD_DIM = 256
PLAIN = Scores()
DECODE_ROWS = 64
"""Rows (positions by heads of a group) a request up to which a call counts as decoding."""

_kept: dict[Any, AttentionForm] = {}


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scores: Scores = PLAIN,
    *,
    parallel: bool | None = None,
) -> torch.Tensor:
    """Causal attention of requests whose last query is their last key; (batch, q, heads, dim).

    query (batch, heads, q, dim), key and value (batch, kv_heads, k, dim); bfloat16, float16 or
    float32 (never as TF32); dim up to 256. Rows of padding are zero. `parallel` says whether
    splits get programs of their own, by default if tiles are few; it changes no bit, and with
    windows it is ignored. Raises UsageError for operands that the kernel does not take.
    """
    sinks = scores.sinks
    kind = (
        query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride(),
        query.dtype, key.dtype, value.dtype, query.get_device(), key.get_device(),
        scores.scaling, scores.softcap, None if sinks is None else sinks.dtype, parallel,
    )  # fmt: skip
    call = layout.calls.get(kind)  # what the layers before this one found out
    if call is None:
        call = layout.calls[kind] = _call(query, key, value, layout, scores, parallel)
    return call((query, key, value), sinks)


def _call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scores: Scores,
    parallel: bool | None,
) -> Call:
    """How these operands, and others that lie as they do, are attended to in this layout."""
    batch, heads, q_size, dim = query.shape
    if query.numel() == 0 or key.shape[2] == 0:
        return lambda states, sinks: states[0].new_zeros((batch, q_size, heads, dim))
    if not query.stride(3) == key.stride(3) == value.stride(3) == 1:
        call = _call(*_contiguous(query, key, value), layout, scores, parallel)
        return lambda states, sinks: call(_contiguous(*states), sinks)
    return _form(query, key, value, layout, scores).call(query, key, layout, parallel)


def _contiguous(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> States:
    return query.contiguous(), key.contiguous(), value.contiguous()


def _form(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scores: Scores
) -> AttentionForm:
    """The form for operands of this kind, with the fastest shape that shares the class's bits."""
    _, heads, q_size, _ = query.shape
    kv_heads = key.shape[1]
    # A small tile holds all queries of a request.
    few = q_size * heads <= DECODE_ROWS * kv_heads * (layout.requests if layout.packed else 1)
    phase = "decode" if few else "prefill"
    kind = (
        phase, layout.packed, layout.starts is not None and layout.starts.dtype,
        layout.has_origins, layout.origins is not None and layout.origins.dtype, layout.has_firsts,
        scores.scaling, scores.softcap, scores.sinks is not None and scores.sinks.dtype,
        heads, query.shape[3], kv_heads, key.shape[3], value.shape[1], value.shape[3],
        query.dtype, key.dtype, value.dtype, query.get_device(), key.get_device(),
        *map(strides, (query, key, value)),
    )  # fmt: skip
    form = _kept.get(kind)
    if form is None:
        _check(query, key, value, scores)
        form = _fastest(query, key, value, layout, scores, phase)
        if not capturing():  # while a graph is captured, shapes are not chosen but given
            keep(_kept, kind, form)
    return form


def _fastest(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scores: Scores,
    phase: str,
) -> AttentionForm:
    """The form with the fastest shape of the class for these operands."""

    def form(shape: Shape) -> AttentionForm:
        return AttentionForm(query, key, value, layout, scores, shape)

    def time(shape: Shape) -> float:
        call = form(shape).call(query, key, layout)
        return milliseconds(lambda: call((query, key, value), scores.sinks), query.device)

    kind = AttentionKind(
        query.shape[1] // key.shape[1], query.shape[3], query.dtype, query.device,
        windowed=layout.has_firsts or layout.has_origins, capped=scores.softcap is not None,
        sinks=scores.sinks is not None,
    )  # fmt: skip
    alternatives, ways = _class(kind)
    timed = time if query.is_cuda else None
    return form(alternatives.choose(phase, lambda: (ways[phase],), timed))


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """Everything that a query's bits may depend on, besides the shape of the kernel."""

    group: int
    """Heads of a key-value head."""
    dim: int
    dtype: torch.dtype
    device: torch.device
    windowed: bool = False
    """True if queries may not see a request's first keys."""
    capped: bool = False
    sinks: bool = False


@cache
def _class(kind: AttentionKind) -> tuple[BitClass[Shape], Shapes]:
    ways = shapes(kind.group, block_d(kind.dim), kind.dtype, capability(kind.device))
    anchor = ways["prefill"][0]
    return BitClass(anchor, lambda shape: agree(kind, anchor, shape)), ways


def agree(kind: AttentionKind, anchor: Shape, shape: Shape) -> bool:
    """True if two shapes give the same bits on a probe, in turn and side by side.

    The probe packs a request that is decoded and one that is prefilled, both longer than a split.
    A window that is wider than the requests, and keys that start at position 0, change nothing, so
    the kernels for windows must give the bits of those without.
    """
    generator = torch.Generator(kind.device).manual_seed(0)
    on: Any = {"generator": generator, "device": kind.device}
    long = attention_layout.SPLIT + 37
    lengths = torch.tensor([[0, 0], [1, 2 * long], [1 + long, 3 * long]], device=kind.device)
    whole = Layout(2, lengths[:, 0].int(), lengths[:, 1].int())
    query = torch.randn(1, kind.group, 1 + long, kind.dim, **on).to(kind.dtype)
    key, value = torch.randn(2, 1, 1, 3 * long, kind.dim, **on).to(kind.dtype)
    sinks = torch.randn(kind.group, **on).to(kind.dtype) if kind.sinks else None
    scores = Scores(1.0, 30.0 if kind.capped else None, sinks)

    def result(candidate: Shape, layout: Layout, *, parallel: bool) -> torch.Tensor:
        form = AttentionForm(query, key, value, layout, scores, candidate)
        return form(query, key, value, layout, parallel, sinks)

    expected = result(anchor, whole, parallel=False)
    ways = [(whole, False), (whole, True)]
    if kind.windowed:
        of_queries = torch.arange(1 + long, device=kind.device) - 1  # positions of the second one's
        of_queries[0] = 2 * long - 1
        moved = Layout(2, whole.cu_q, whole.cu_k, positions=of_queries)
        wide = Layout(2, whole.cu_q, whole.cu_k, window=4 * long)
        ways += [(wide, False), (moved, False), (moved, True)]
    return all(
        torch.equal(result(shape, layout, parallel=parallel), expected) for layout, parallel in ways
    )


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores) -> None:
    problem = None
    sinks = scores.sinks
    if query.dtype not in FLOATS or not query.dtype == key.dtype == value.dtype:
        problem = f"tensors of {query.dtype}, {key.dtype} and {value.dtype}"
    elif query.shape[3] > MAX_HEAD_DIM or not query.shape[3] == key.shape[3] == value.shape[3]:
        problem = f"heads of {query.shape[3]}, {key.shape[3]} and {value.shape[3]} entries"
    elif query.shape[1] % key.shape[1]:
        problem = f"{query.shape[1]} heads over {key.shape[1]} key-value heads"
    elif sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_contiguous()):
        problem = f"{tuple(sinks.shape)} sinks for {query.shape[1]} heads"
    if problem is not None:
        raise UsageError(
            f"Batch-invariant attention on the GPU does not take {problem}: it takes equal dtypes "
            f"(bfloat16, float16, float32) and head sizes up to {MAX_HEAD_DIM}."
        )
