"""The ops that `detcheck ops` probes, at a model's shapes and at boundary values, on seeded data.

Rounding to bfloat16 hides most differences of order, so the data are made to show them.
Products cancel in pairs (partial sums are large, totals small); reductions span magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from detcheck.probes.attention_cases import (
    decode,
    packed_decode,
    prefill,
    request_pairs,
    requests,
)
from detcheck.probes.relations import Function, Tensors
from detcheck.probes.shapes import LayerShapes

ROWS = 129
"""Rows of the reference batch: one more than the largest common tile."""
HEAD_ROWS = 33
"""Rows of the reference batch if a row has the length of the vocabulary."""
BOUNDARY_INNER = (512, 577, 1024, 1536, 2048, 4096)
"""Lengths K of sums at which matmul libraries are known to change kernels; 577 is odd."""
BOUNDARY_COLUMNS = 64
FEW = (577, 3)
"""K and N of a product so narrow that a row's position in the batch may change its bits."""
PREFIXES = (31, 32, 33, 127, 128, 129, 513)
"""Keys of one request: around the sizes of one and of several blocks."""
PREFILL_TOKENS = 65

Pairs = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class Call:
    """An op ready to be called: `function(*inputs)` with the batch first."""

    function: Function
    inputs: Tensors
    pairs: dict[str, Pairs] = field(default_factory=dict)
    """By relation about requests: (reference rows, rows that must equal them) of each attempt."""


@dataclass(frozen=True, slots=True)
class OpCase:
    """One op at one shape; `build` makes its data."""

    op: str
    shape: str
    build: Callable[[torch.dtype, int], Call]
    """Takes (dtype, seed); returns the call, its tensors on the CPU."""


def cases(shapes: LayerShapes) -> tuple[OpCase, ...]:
    """One case for each op at each shape."""
    return (*_linears(shapes), *_row_ops(shapes), *_attention(shapes))


FAMILIES_OF: dict[str, frozenset[str]] = {
    **dict.fromkeys(("linear", "linear-last"), frozenset({"matmul"})),
    "rms_norm": frozenset({"norm", "reduce"}),
    "layer_norm": frozenset({"norm"}),
    "softmax": frozenset({"softmax"}),
    "log_softmax": frozenset({"softmax"}),
    **dict.fromkeys(("logsumexp", "sum", "mean"), frozenset({"reduce"})),
    **dict.fromkeys(("silu", "gelu"), frozenset({"pointwise"})),
    **dict.fromkeys(
        ("attention-decode", "attention-packed", "attention-prefill"), frozenset({"attention"})
    ),
}
"""By op: the families that must all be overridden for it to be invariant."""
OPS = tuple(FAMILIES_OF)
"""Names of the ops, in the order of `cases`."""


def _linears(shapes: LayerShapes) -> Iterator[OpCase]:
    boundary = [*((inner, BOUNDARY_COLUMNS) for inner in BOUNDARY_INNER), FEW]
    for inner, columns in dict.fromkeys((*shapes.linears, *boundary)):
        yield OpCase("linear", f"{inner}→{columns}", _linear(inner, columns, ROWS))
    yield OpCase(
        "linear",
        f"{shapes.hidden}→{shapes.vocabulary}",
        _linear(shapes.hidden, shapes.vocabulary, HEAD_ROWS),
    )
    hidden = shapes.hidden
    yield OpCase("linear-last", f"{hidden}→{hidden}", _linear_of_last_token(hidden, hidden))


def _linear(inner: int, columns: int, rows: int) -> Callable[[torch.dtype, int], Call]:
    def build(dtype: torch.dtype, seed: int) -> Call:
        left, weight = cancelling(rows, inner, columns, seed)
        parameter = _parameter(weight.to(dtype))
        return Call(lambda x: F.linear(x, parameter.to(x.device)), (left.to(dtype),))

    return build


def _parameter(weight: torch.Tensor) -> torch.nn.Parameter:
    """A weight as layers hold it. Only such weights are packed, and none of inference mode."""
    with torch.inference_mode(False):
        return torch.nn.Parameter(weight.clone(), requires_grad=False)


def _linear_of_last_token(inner: int, columns: int) -> Callable[[torch.dtype, int], Call]:
    """A biased layer on each request's last of two tokens; contiguous only for one request."""

    def build(dtype: torch.dtype, seed: int) -> Call:
        left, weight = cancelling(ROWS, inner, columns, seed)
        tokens = torch.stack((left.flip(0), left), dim=1)
        parameter, bias = _parameter(weight.to(dtype)), weight[:, 0].contiguous().to(dtype)
        return Call(
            lambda x: F.linear(x[:, -1:], parameter.to(x.device), bias.to(x.device)),
            (tokens.to(dtype),),
        )

    return build


def _row_ops(shapes: LayerShapes) -> Iterator[OpCase]:
    hidden, vocabulary, inner = shapes.hidden, shapes.vocabulary, shapes.intermediate
    long, wide = (HEAD_ROWS, vocabulary), (ROWS, hidden)
    for op, function, (rows, width) in (
        ("rms_norm", rms_norm, wide),
        ("layer_norm", lambda x: F.layer_norm(x, x.shape[-1:]), wide),
        ("softmax", lambda x: x.softmax(-1), long),
        ("log_softmax", lambda x: x.log_softmax(-1), long),
        ("logsumexp", lambda x: x.logsumexp(-1), long),
        ("sum", lambda x: x.sum(-1), long),
        ("mean", lambda x: x.mean(-1), wide),
        ("silu", F.silu, (ROWS, inner)),
        ("silu", F.silu, (ROWS, inner + 1)),
        ("gelu", F.gelu, (ROWS, inner + 1)),
    ):
        yield OpCase(op, str(width), _rows(function, rows, width))


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """RMSNorm of (rows, hidden) as in Llama, without its weight."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def _rows(function: Function, rows: int, width: int) -> Callable[[torch.dtype, int], Call]:
    def build(dtype: torch.dtype, seed: int) -> Call:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, width, generator=generator)
        return Call(function, ((x * torch.randn(x.shape, generator=generator).exp()).to(dtype),))

    return build


def _attention(shapes: LayerShapes) -> Iterator[OpCase]:
    for keys in PREFIXES:
        yield OpCase("attention-decode", f"keys {keys}", _requests(decode, shapes, 1, keys))
    for keys in PREFIXES[-2:]:
        yield OpCase("attention-packed", f"keys {keys}", _requests(packed_decode, shapes, 1, keys))
    tokens = PREFILL_TOKENS
    yield OpCase(
        "attention-prefill", f"tokens {tokens}", _requests(prefill, shapes, tokens, tokens)
    )


def _requests(
    function: Function, shapes: LayerShapes, queries: int, keys: int
) -> Callable[[torch.dtype, int], Call]:
    def build(dtype: torch.dtype, seed: int) -> Call:
        inputs = tuple(x.to(dtype) for x in requests(shapes, queries, keys, seed))
        return Call(function, inputs, request_pairs(inputs))

    return build


def cancelling(rows: int, inner: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left (rows, inner) and weight (columns, inner) whose products cancel in pairs, float32."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(inner, generator=generator)
    first, second = order[: inner // 2], order[inner // 2 : inner // 2 * 2]
    left = torch.randn(rows, inner, generator=generator)
    pattern = torch.randn(min(columns, 1024), inner, generator=generator)
    jitter = torch.randn(rows, len(first), generator=generator)
    left[:, second] = left[:, first] * (1 + jitter / 128)
    pattern[:, second] = -pattern[:, first]
    return left, pattern.repeat(-(-columns // len(pattern)), 1)[:columns]
