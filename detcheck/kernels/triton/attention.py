"""Batch-invariant causal attention on the GPU, for packed requests and for padded batches.

A query's result depends on its own position and its own keys, and on nothing else:

- Keys are taken in blocks of `block_n` from position 0 of the request, and every SPLIT keys form
  a partial result of their own (1000 keys are 256 + 256 + 256 + 232). Partial results are merged
  in order. Splits have a fixed size at absolute positions, never a fixed count.
- One program may compute all splits of a query in turn, or each split may have its own program
  (`parallel`, for long contexts with few queries). The arithmetic is the same, so this choice
  changes no bit and may follow the load.
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
from detcheck.kernels.triton import attention_layout
from detcheck.kernels.triton.attention_form import AttentionForm
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.attention_shapes import Shape, Shapes, block_d, shapes
from detcheck.kernels.triton.bit_class import BitClass, milliseconds
from detcheck.kernels.triton.launch import capability, capturing, keep

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEAD_DIM = 256
DECODE_ROWS = 64
"""Rows (positions by heads of a group) a request up to which a call counts as decoding."""

_kept: dict[Any, AttentionForm] = {}


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None = None,
    *,
    parallel: bool | None = None,
) -> torch.Tensor:
    """Causal attention of requests whose last query is their last key; (batch, q, heads, dim).

    query (batch, heads, q, dim), key and value (batch, kv_heads, k, dim); bfloat16, float16 or
    float32 (never as TF32); dim up to 256. Rows of padding are zero. `parallel` says whether
    splits get programs of their own, by default if tiles are few; it changes no bit. Raises
    UsageError for operands that the kernel does not take.
    """
    batch, heads, q_size, dim = query.shape
    _, kv_heads, k_size, key_dim = key.shape
    if query.numel() == 0 or k_size == 0:
        return query.new_zeros((batch, q_size, heads, dim))
    if not query.stride(3) == key.stride(3) == value.stride(3) == 1:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    # A small tile holds all queries of a request.
    packed = layout.cu_q is not None
    decode = q_size * heads <= DECODE_ROWS * kv_heads * (layout.requests if packed else 1)
    first = 0 if batch > 1 else 1  # of a batch of one, the stride between its entries is no matter
    kind = (
        decode, scaling, packed, layout.starts is None or layout.starts.dtype,
        heads, dim, kv_heads, key_dim, value.shape[1], value.shape[3],
        query.dtype, key.dtype, value.dtype, query.get_device(), key.get_device(),
        query.stride()[first:], key.stride()[first:], value.stride()[first:],
    )  # fmt: skip
    form = _kept.get(kind)
    if form is None:
        _check(query, key, value)
        phase = "decode" if decode else "prefill"
        form = _form(query, key, value, layout, scaling, phase)
        if not capturing():  # while a graph is captured, shapes are not chosen but given
            keep(_kept, kind, form)
    return form(query, key, value, layout, parallel)


def _form(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    phase: str,
) -> AttentionForm:
    """The form for these operands, with the fastest shape that shares the class's bits."""

    def form(shape: Shape) -> AttentionForm:
        return AttentionForm(query, key, value, layout, scaling, shape)

    def time(shape: Shape) -> float:
        timed = form(shape)
        return milliseconds(lambda: timed(query, key, value, layout))

    kind = AttentionKind(query.shape[1] // key.shape[1], query.shape[3], query.dtype, query.device)
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


@cache
def _class(kind: AttentionKind) -> tuple[BitClass[Shape], Shapes]:
    ways = shapes(kind.group, block_d(kind.dim), kind.dtype, capability(kind.device))
    anchor = ways["prefill"][0]
    return BitClass(anchor, lambda shape: agree(kind, anchor, shape)), ways


def agree(kind: AttentionKind, anchor: Shape, shape: Shape) -> bool:
    """True if two shapes give the same bits on a probe, in turn and side by side.

    The probe packs a request that is decoded and one that is prefilled, both longer than a split.
    """
    generator = torch.Generator(kind.device).manual_seed(0)
    on: Any = {"generator": generator, "device": kind.device}
    long = attention_layout.SPLIT + 37
    lengths = torch.tensor([[0, 0], [1, 2 * long], [1 + long, 3 * long]], device=kind.device)
    cu_q, cu_k = lengths.int().unbind(1)
    query = torch.randn(1, kind.group, 1 + long, kind.dim, **on).to(kind.dtype)
    key, value = torch.randn(2, 1, 1, 3 * long, kind.dim, **on).to(kind.dtype)

    def result(candidate: Shape, *, parallel: bool) -> torch.Tensor:
        layout = Layout(2, cu_q, cu_k)
        form = AttentionForm(query, key, value, layout, 1.0, candidate)
        return form(query, key, value, layout, parallel)

    expected = result(anchor, parallel=False)
    return all(torch.equal(result(shape, parallel=each), expected) for each in (False, True))


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    problem = None
    if query.dtype not in FLOATS or not query.dtype == key.dtype == value.dtype:
        problem = f"tensors of {query.dtype}, {key.dtype} and {value.dtype}"
    elif query.shape[3] > MAX_HEAD_DIM or not query.shape[3] == key.shape[3] == value.shape[3]:
        problem = f"heads of {query.shape[3]}, {key.shape[3]} and {value.shape[3]} entries"
    elif query.shape[1] % key.shape[1]:
        problem = f"{query.shape[1]} heads over {key.shape[1]} key-value heads"
    if problem is not None:
        raise UsageError(
            f"Batch-invariant attention on the GPU does not take {problem}: it takes equal dtypes "
            f"(bfloat16, float16, float32) and head sizes up to {MAX_HEAD_DIM}."
        )
