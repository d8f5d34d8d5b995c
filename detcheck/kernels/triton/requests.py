"""Attention of padded batches on a GPU: which keys each row sees, from a mask or from a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from detcheck.kernels.cpu.any_mask import attend as attend_any_mask
from detcheck.kernels.scores import Scores
from detcheck.kernels.triton.attention_form import States
from detcheck.kernels.triton.differentiable import PaddedKeys, packed_attention, padded_attention
from detcheck.kernels.visible_keys import UnreadableMaskError, read_mask_once, rows_alone


@dataclass(frozen=True, slots=True)
class Window:
    """A layer's sliding window."""

    size: int | None = None
    """Keys that a query sees, itself included; None: all."""
    positions: torch.Tensor | None = None
    """(batch or 1, q) positions of the queries, if the model tells them."""


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
    window: Window,
) -> torch.Tensor:
    """Attention of a padded batch, or of rows that hold several sequences, each by itself.

    A mask has the window in it already. A row whose mask is no causal interval of keys is written
    out (`any_mask.py`).
    """
    if mask is None:
        seen = _without_mask(query, key, window)
        mask = _mask_of(seen, query, key)
        return padded_attention(query, key, value, seen, scores, mask)
    try:
        keys = read_mask_once(mask, len(query), key.shape[2])
        if keys.narrow and keys.several_sequences:
            return attend_sequences(query, key, value, keys.packed_bounds, scores, keys.window)
    except UnreadableMaskError:
        return _row_by_row((query, key, value), mask, scores, window)
    # Padding on the right is after all queries that are read, so causality hides it.
    seen = PaddedKeys(
        keys.starts,
        keys.firsts - keys.starts[:, None] if keys.narrow else None,
        _origins(query, key, window, keys.starts, keys.ends),
    )
    return padded_attention(query, key, value, seen, scores, mask)


def _row_by_row(states: States, mask: torch.Tensor, scores: Scores, window: Window) -> torch.Tensor:
    """Rows computed as if alone, since the mask of at least one of them is no interval."""
    query, key, value = states
    if len(query) == 1:
        return attend_any_mask(query, key, value, mask[..., : key.shape[2]], scores)
    places: Sequence[torch.Tensor | None] = [None] * len(query)
    if window.positions is not None:
        places = window.positions.expand(len(query), *window.positions.shape[1:]).split(1)
    rows = zip(rows_alone(query, key, value, mask), places, strict=True)
    return torch.cat(
        [
            attend_padded(q, k, v, own, scores, Window(window.size, at))
            for (q, k, v, own), at in rows
        ]
    )


def attend_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: Sequence[Sequence[int]],
    scores: Scores,
    window: int | None = None,
) -> torch.Tensor:
    """Rows of several sequences each: a packed call for each row, given its `bounds`."""
    rows = []
    for row, ends in enumerate(bounds):
        one = slice(row, row + 1)
        cu = torch.tensor(ends, dtype=torch.int32, device=query.device)
        lengths = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_k": query.shape[2]}
        operands = query[one], key[one], value[one]
        rows.append(packed_attention(*operands, scores, lengths, window=window))
    return torch.cat(rows)


def _without_mask(query: torch.Tensor, key: torch.Tensor, window: Window) -> PaddedKeys:
    """The keys that queries see without padding, made on the device."""
    q_len, k_len = query.shape[2], key.shape[2]
    if window.size is None or window.size >= k_len:
        return PaddedKeys(origins=_origins(query, key, window))
    if q_len == 1:  # keys before the window are as good as padding
        starts = torch.full((len(query),), k_len - window.size, device=query.device)
        return PaddedKeys(starts, origins=_origins(query, key, window, starts))
    firsts = torch.arange(k_len - q_len, k_len, device=query.device) + 1 - window.size
    firsts = firsts.expand(len(query), q_len)
    return PaddedKeys(firsts=firsts, origins=_origins(query, key, window))


def _origins(
    query: torch.Tensor,
    key: torch.Tensor,
    window: Window,
    starts: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """The position of the first key of each row, of which a rolling cache dropped the keys before.

    None if no keys can be missing, and if the model does not tell positions: then keys are counted
    from the first one that is left, whatever the batch. `starts` and `ends` (rows,) bound the keys
    of each row.
    """
    rows, q_len, k_len = len(query), query.shape[2], key.shape[2]
    positions = window.positions
    usable = positions is not None and positions.dim() == 2 and positions.shape[1] == q_len
    if window.size is None or positions is None or not usable or q_len == k_len:
        return None
    positions = positions.expand(rows, -1)
    if ends is None:
        origins = positions[:, -1] + 1 - k_len
    else:  # with padding on the right the last query is not the last column
        column = (ends - 1 - (k_len - q_len)).clamp(min=0)
        origins = positions.gather(1, column[:, None])[:, 0] + 1 - ends
    return (origins if starts is None else origins + starts).clamp(min=0)


def _mask_of(seen: PaddedKeys, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """The mask of a window for the stock formula of gradients; None if there is no window."""
    if seen.firsts is None or not torch.is_grad_enabled():
        return None
    q_len, k_len = query.shape[2], key.shape[2]
    at = torch.arange(k_len, device=query.device)
    visible = (at <= at[k_len - q_len :, None]) & (at >= seen.firsts[..., None])
    return visible[:, None]
