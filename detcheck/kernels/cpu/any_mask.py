"""Attention with any mask or bias, written out: all sums run in order. On a GPU too.

For masks that are no intervals of keys, such as biases by distance and attention in both
directions. A whole batch is computed at once. A masked key has the weight zero, which changes
no sum (`in_order.py`): so padding, chunks and decoding change nothing.
"""

from __future__ import annotations

import torch

from detcheck.errors import UsageError
from detcheck.kernels.cpu import in_order
from detcheck.kernels.cpu.numerics import in_transform
from detcheck.kernels.cpu.stock import stock_attention
from detcheck.kernels.scores import Scores


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a batch; returns (batch, q, heads, value_dim), zeros for queries without keys.

    query (batch, heads, q, dim), key (batch, kv_heads, k, dim), value (batch, kv_heads, k,
    value_dim). `mask` and `bias` can be expanded to (batch, heads, q, k): a boolean mask is true
    for the keys that a query sees; another one, and the bias, are added to the scores.
    """
    batch, heads, q_len, dim = query.shape
    scaling = dim**-0.5 if scores.scaling is None else scores.scaling
    summed_as = torch.promote_types(query.dtype, torch.float32)
    weights = _by_heads(query.to(summed_as), key.to(summed_as).mT) * scaling
    if scores.softcap is not None:
        weights = torch.tanh(weights / scores.softcap) * scores.softcap
    if bias is not None:
        weights = weights + bias
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        weights = weights + mask
    sees_nothing = (weights == -torch.inf).all(-1, keepdim=True)
    if scores.sinks is not None:
        sinks = scores.sinks.to(summed_as).view(1, heads, 1, 1).expand(batch, -1, q_len, -1)
        weights = torch.cat((weights, sinks), -1)
    shares = in_order.softmax(weights)[..., : key.shape[2]].masked_fill(sees_nothing, 0.0)
    return _by_heads(shares, value.to(summed_as)).to(value.dtype).transpose(1, 2)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """PyTorch's function of this name, called by a model past transformers' attention interface.

    Tensors of other than four dims, of integers, and calls with dropout run as stock. Raises
    UsageError for nested tensors.
    """
    if query.is_nested:
        raise UsageError(
            "Batch-invariant attention takes no nested tensors: pad them, with a mask."
        )
    q_len, k_len = query.shape[-2], key.shape[-2]
    causal = None
    if is_causal:
        causal = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device).tril()
    usual = (
        query.device.type in ("cpu", "cuda")
        and query.is_floating_point()
        and query.dim() == 4
        and dropout_p == 0
    )
    heads_fit = key.dim() == value.dim() == 4 and _heads_fit(query, key, value, enable_gqa)
    if not usual or not heads_fit or (is_causal and attn_mask is not None):
        return stock_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    mask = causal if attn_mask is None else attn_mask
    return attend(query, key, value, mask, Scores(scale)).transpose(1, 2)


def _heads_fit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> bool:
    """True if `attend` takes these operands: one batch size, and groups of heads."""
    heads, kv_heads = query.shape[1], key.shape[1]
    grouped = kv_heads in (1, heads) or (enable_gqa and kv_heads > 0 and heads % kv_heads == 0)
    one_batch = len(query) == len(key) == len(value) > 0
    return grouped and one_batch and value.shape[1] == kv_heads and query.shape[3] == key.shape[3]


def _by_heads(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(batch, heads, M, K) by (batch, kv_heads, K, N), to (batch, heads, M, N)."""
    batch, heads, length, inner = rows.shape
    kv_heads, width = columns.shape[1], columns.shape[3]
    grouped = rows.reshape(batch * kv_heads, heads // kv_heads * length, inner)
    columns = columns.reshape(-1, inner, width)
    if in_transform():  # an `autograd.Function` has no place there; `bmm` sums in order, too
        product = torch.bmm(grouped, columns)
    else:
        product = in_order.InOrder.apply(grouped, columns)
    return product.view(batch, heads, length, width)
