"""Where requests lie in the tensors of an attention call, and which program computes which tile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from detcheck.kernels.triton.attention_kernels import schedule_kernel
from detcheck.kernels.triton.launch import NUMERICS, Repeated, keep

SPLIT = 256
"""Keys of one partial result; a multiple of every tile's positions. Not measured yet."""
SCHEDULE_BLOCK = 128

_kept: dict[Any, Repeated] = {}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which tile of which packed request each program computes."""

    slots: torch.Tensor
    """(5, slots) int32; see `schedule_kernel`."""
    row_splits: torch.Tensor
    """(q,) int32: splits of the keys that each row sees."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where requests lie in query (batch, heads, q, dim) and in keys (batch, kv_heads, k, dim).

    Packed: the batch is 1, and request i has queries [cu_q[i], cu_q[i+1]) and keys
    [cu_k[i], cu_k[i+1]). Padded: request i is entry i of the batch, its keys from starts[i] on.
    """

    requests: int
    cu_q: torch.Tensor | None = None
    """(requests + 1,) int32 or int64, packed only."""
    cu_k: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    """(requests,) keys of left padding, padded only; None if there is none."""
    max_k: int | None = None
    """An upper bound of the keys of a request, if one is known without asking the device."""
    _schedules: dict[int, Schedule] = field(default_factory=dict, compare=False)
    """By positions of a tile. Layers that share a layout share its schedules."""

    @property
    def packed(self) -> bool:
        """True if requests are packed along the length."""
        return self.cu_q is not None

    def slots(self, q_size: int, block_q: int) -> int:
        """Programs a key-value head: a bound on the tiles, known without asking the device."""
        if self.packed:
            return q_size // block_q + 2 * self.requests + 1
        return self.requests * (triton.cdiv(q_size, block_q) + 1)

    def schedule(self, q_size: int, block_q: int) -> Schedule | None:
        """The schedule of packed requests for tiles of `block_q` positions; None if padded."""
        if self.cu_q is None or self.cu_k is None:
            return None
        schedule = self._schedules.get(block_q)
        if schedule is None:
            lengths = self.cu_q.contiguous(), self.cu_k.contiguous()
            schedule = _made(*lengths, self.requests, q_size, block_q, self.slots(q_size, block_q))
            self._schedules[block_q] = schedule
        return schedule


def _made(
    cu_q: torch.Tensor, cu_k: torch.Tensor, requests: int, q_size: int, block_q: int, slots: int
) -> Schedule:
    table = cu_q.new_empty((5, slots), dtype=torch.int32)
    row_splits = cu_q.new_empty(q_size, dtype=torch.int32)
    kind = block_q, SPLIT, cu_q.dtype, cu_k.dtype, cu_q.get_device()
    if kind not in _kept:
        named = {"BLOCK_Q": block_q, "SPLIT": SPLIT, "BLOCK": SCHEDULE_BLOCK, "num_warps": 4}
        keep(_kept, kind, Repeated(schedule_kernel, (), {**named, **NUMERICS}))
    blocks = triton.cdiv(max(slots, q_size), SCHEDULE_BLOCK)
    _kept[kind]((blocks, 1, 1), (table, row_splits, cu_q, cu_k), (requests, q_size, slots))
    return Schedule(table, row_splits)
