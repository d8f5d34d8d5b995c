"""The calls of a model's layers, as launches that are noted and not run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from detcheck.kernels.triton import configs, grouped, matmul, norm, reduce, softmax
from detcheck.kernels.triton.ahead import launches_of
from detcheck.kernels.triton.attention import PLAIN
from detcheck.kernels.triton.attention_form import AttentionForm
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.attention_shapes import block_d, shapes
from gpu_sections.layers import Model
from gpu_sections.roofline_cost import Cost, Work

BYTES = 2
"""Of a bfloat16."""
HOPPER = (9, 0)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def linear(rows: int, columns: int, inner: int) -> Cost:
    """A linear layer: the first tile of the table for its rows, which a card may outdo."""
    tile = next(tile for limit, tile in configs.table(torch.bfloat16, HOPPER) if rows <= limit)
    left, right = empty(1, rows, inner), empty(1, columns, inner).mT
    launches = launches_of(lambda: matmul.product(left, right, None, tile))
    work = Work(
        BYTES * (columns * inner + rows * inner), BYTES * rows * columns, 2 * rows * columns * inner
    )
    return Cost(work, tuple(launches))


def experts(rows: int, columns: int, inner: int, model: Model) -> Cost:
    """The experts of `rows` tokens, each token by as many as the model gives it.

    Read are the weights of the experts that have tokens, at most one for each.
    """
    tokens = rows * model.experts_a_token
    table = configs.table(torch.bfloat16, HOPPER)
    plain = [(limit, tile) for limit, tile in table if not tile.descriptors]
    tile = next(tile for limit, tile in plain if -(-tokens // model.experts) <= limit)
    weight = empty(model.experts, columns, inner).mT
    offsets = empty(model.experts, dtype=torch.int32)
    launches = launches_of(lambda: grouped.product(empty(tokens, inner), weight, offsets, tile))
    used = min(model.experts, tokens)
    work = Work(
        BYTES * (used * columns * inner + tokens * inner),
        BYTES * tokens * columns,
        2 * tokens * columns * inner,
    )
    return Cost(work, tuple(launches))


def decoding(requests: int, keys: int, model: Model) -> Cost:
    """Attention of one query a request, packed; its schedule is made once a step."""
    query = empty(1, model.heads, requests, model.head_dim)
    key = empty(1, model.kv_heads, requests * keys, model.head_dim)
    return _attention(query, key, requests, keys, "decode", requests * keys)


def prefill(length: int, model: Model) -> Cost:
    """Attention of one prompt."""
    query = empty(1, model.heads, length, model.head_dim)
    key = empty(1, model.kv_heads, length, model.head_dim)
    return _attention(query, key, 1, length, "prefill", length * (length + 1) // 2)


def _attention(
    query: torch.Tensor, key: torch.Tensor, requests: int, keys: int, phase: str, pairs: int
) -> Cost:
    """`pairs` are the (query, key) pairs of a head that count."""
    heads, dim = query.shape[1], query.shape[3]
    block = block_d(dim)
    phases = shapes(heads // key.shape[1], block, torch.bfloat16, HOPPER)
    bounds = empty(requests + 1, dtype=torch.int32)
    layout = Layout(requests, bounds, bounds, max_k=keys)
    form = AttentionForm(query, key, key, layout, PLAIN, phases[phase][0])
    launches = [
        launch
        for launch in launches_of(lambda: form(query, key, key, layout))
        if launch.name != "schedule_kernel"
    ]
    splits = launches[0].grid[2]
    partial = 4 * splits * query.numel() // dim * (dim + 2) if splits > 1 else 0
    work = Work(
        BYTES * (query.numel() + 2 * key.numel()) + partial,
        BYTES * query.numel() + partial,
        4 * heads * pairs * dim,
    )
    return Cost(work, tuple(launches))


def row_op(name: str, rows: int, length: int) -> Cost:
    """A norm, a softmax or a reduction of bfloat16 rows."""
    x = empty(rows, length)
    launches = launches_of(lambda: ROW_OPS[name][0](x))
    passes, writes_rows = ROW_OPS[name][1:]
    written = BYTES * x.numel() if writes_rows else BYTES * rows
    return Cost(Work(BYTES * x.numel() * passes, written, 2 * x.numel() * passes), tuple(launches))


RowOp = Callable[[torch.Tensor], object]
ROW_OPS: dict[str, tuple[RowOp, int, bool]] = {
    "mean": (lambda x: reduce.mean_dims(x, [-1], True), 1, False),
    "rms_norm": (lambda x: norm.fused_rms_norm(x, [x.shape[1]], None, 1e-6), 1, True),
    "layer_norm": (lambda x: norm.layer_norm(x, [x.shape[1]], None, None, 1e-5), 1, True),
    "log_softmax": (lambda x: softmax.log_softmax(x, -1, False), 3, True),
    "logsumexp": (lambda x: reduce.logsumexp(x, [-1]), 2, False),
    "norm": (lambda x: reduce.vector_norm(x, 2, [-1]), 1, False),
}
"""Name, then the call, how often a row is read from memory, and whether a row is written.

A row of hidden size stays in the cache between passes; rows of the vocabulary may not."""
