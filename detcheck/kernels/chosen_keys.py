"""Layers that choose the keys of each query by a score, as DeepSeek's sparse attention does.

In a mask, a query that does not choose itself looks like padding on the right, which attention
leaves out. So these queries are computed afterwards, each by itself, as in decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.visible_keys import (
    HIDDEN,
    UnreadableMaskError,
    read_mask_once,
    rows_alone,
    used_places,
)

CHOICES = ("index_topk", "index_topk_blocks")
"""Attributes of a config that say how many keys, or blocks of keys, a query chooses."""


def chooses_keys(module: Any) -> bool:
    """True if the config of an attention layer says that its queries choose their keys."""
    config = getattr(module, "config", None)
    return any(getattr(config, name, None) for name in CHOICES)


def attend_chosen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor | None,
    attend: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Attention of each row by itself, without padding in it: (rows, q, heads, value_dim).

    `attend(query, key, value, mask, positions)` computes one row; `positions` are (rows or 1, q).
    """
    if positions is not None and positions.dim() != 2:
        positions = None
    parts = []
    for at, (q, k, v, own) in enumerate(rows_alone(query, key, value, mask)):
        places = positions if positions is None or len(positions) == 1 else positions[at : at + 1]
        out = attend(q, k, v, own, places)
        for index in _left_out(own, k.shape[2]):
            one = slice(index, index + 1)
            seen = used_places(1, k, v, own[:, :, one])
            place = None if places is None else places[..., one]
            out[:, one] = attend(q[:, :, one], *seen, place)
        parts.append(out)
    return torch.cat(parts)


def _left_out(mask: torch.Tensor, k_len: int) -> list[int]:
    """The queries of one row that see a key and were taken for padding on the right."""
    try:
        keys = read_mask_once(mask, 1, k_len)
    except UnreadableMaskError:  # then no query was
        return []
    seen = mask[0, 0, :, :k_len]
    sees_any = (seen if seen.dtype == torch.bool else seen > HIDDEN).any(-1)
    behind = torch.arange(k_len - len(seen), k_len, device=mask.device) >= keys.ends
    left_out: list[int] = (behind & sees_any).nonzero().flatten().tolist()
    return left_out
