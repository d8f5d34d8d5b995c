"""Where requests lie in the tensors of an attention call, and which program computes which tile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from detcheck.kernels.triton.launch import NUMERICS, Repeated, keep
from detcheck.kernels.triton.schedule_kernel import schedule_kernel

SPLIT = 256
"""Keys of one partial result; a multiple of every tile's positions. Not measured yet."""
SCHEDULE_BLOCK = 128

_kept: dict[Any, Repeated] = {}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which tile of which packed request each program computes."""

    slots: torch.Tensor
    """(6, slots) int32; see `schedule_kernel`."""
    row_splits: torch.Tensor
    """(q,) int32: splits of the keys that each row sees."""
    firsts: torch.Tensor | None
    """(q,) int32: position of the first key that each row sees; None if all are seen."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where requests lie in query (batch, heads, q, dim) and in keys (batch, kv_heads, k, dim).

    Packed: the batch is 1, and request i has queries [cu_q[i], cu_q[i+1]) and keys
    [cu_k[i], cu_k[i+1]). Padded: request i is entry i of the batch, its keys from starts[i] on.

    A cache may have dropped a request's first keys, which no query sees any more. The positions of
    the others are kept, so that blocks and splits of keys are those of the whole request.
    """

    requests: int
    cu_q: torch.Tensor | None = None
    """(requests + 1,) int32 or int64, packed only."""
    cu_k: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    """(requests,) keys of left padding, padded only; None if there is none."""
    max_k: int | None = None
    """An upper bound of the keys of a request, if one is known without asking the device."""
    window: int | None = None
    """Keys that a query sees, itself included, packed only; None: all."""
    firsts: torch.Tensor | None = None
    """(batch, q) int32, padded only: position of the first key that a query sees; None: 0."""
    origins: torch.Tensor | None = None
    """(requests,) position of the first key of each request, padded only; None if none is gone."""
    positions: torch.Tensor | None = None
    """(q,) positions of the queries, packed only; None if no keys are gone."""
    _schedules: dict[int, Schedule] = field(default_factory=dict, compare=False)
    """By positions of a tile. Layers that share a layout share its schedules."""
    calls: dict[Any, Any] = field(default_factory=dict, compare=False)
    """How `attention` is launched, by kind of operands. Layers share it, too."""

    @property
    def packed(self) -> bool:
        """True if requests are packed along the length."""
        return self.cu_q is not None

    @property
    def has_firsts(self) -> bool:
        """True if some query may not see all keys up to itself."""
        return self.window is not None or self.firsts is not None

    @property
    def has_origins(self) -> bool:
        """True if the first key of a request may have another position than 0."""
        return self.positions is not None or self.origins is not None

    def slots(self, q_size: int, block_q: int) -> int:
        """Programs a key-value head: a bound on the tiles, known without asking the device."""
        if self.packed:
            return q_size // block_q + 2 * self.requests + 1
        return self.requests * (triton.cdiv(q_size, block_q) + 1)

    def splits(self, k_size: int) -> int:
        """Splits of a request's keys, at most. Keys after an origin may lie in one split more."""
        return triton.cdiv(self.max_k or k_size, SPLIT) + self.has_origins

    def schedule(self, q_size: int, block_q: int) -> Schedule | None:
        """The schedule of packed requests for tiles of `block_q` positions; None if padded."""
        if self.cu_q is None or self.cu_k is None:
            return None
        schedule = self._schedules.get(block_q)
        if schedule is None:
            schedule = self._schedules[block_q] = self._made(q_size, block_q)
        return schedule

    def _made(self, q_size: int, block_q: int) -> Schedule:
        assert self.cu_q is not None
        assert self.cu_k is not None
        cu_q, cu_k = self.cu_q.contiguous(), self.cu_k.contiguous()
        slots = self.slots(q_size, block_q)
        table = cu_q.new_empty((6, slots), dtype=torch.int32)
        row_splits = cu_q.new_empty(q_size, dtype=torch.int32)
        firsts = None if self.window is None else torch.empty_like(row_splits)
        positions = cu_q if self.positions is None else self.positions.contiguous()
        flags = {"HAS_ORIGINS": self.has_origins, "HAS_FIRSTS": firsts is not None}
        kind = (block_q, SPLIT, cu_q.dtype, cu_k.dtype, positions.dtype, *flags.values(),
                cu_q.get_device())  # fmt: skip
        if kind not in _kept:
            named = {"BLOCK_Q": block_q, "SPLIT": SPLIT, "BLOCK": SCHEDULE_BLOCK, **flags}
            keep(_kept, kind, Repeated(schedule_kernel, (), {**named, "num_warps": 4, **NUMERICS}))
        blocks = triton.cdiv(max(slots, q_size), SCHEDULE_BLOCK)
        tensors = table, row_splits, row_splits if firsts is None else firsts, cu_q, cu_k, positions
        numbers = self.requests, q_size, slots, self.window or 0
        _kept[kind]((blocks, 1, 1), tensors, numbers)
        return Schedule(table, row_splits, firsts)
