"""Which queries on the CPU share one call of the stock attention kernel.

Requests are packed along the length. A query has the keys that it sees, padded to a whole number of
`KEY_STEP` keys. Queries with equally many padded keys share a call, see `queries.py`. The calls are
found once a step and used by every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch.utils._python_dispatch import _disable_current_modes

KEY_STEP = 64
"""Keys are padded to a multiple of this."""
MAX_ENTRIES = 64
"""Queries of one call at most."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A request's place in packed tensors: queries `[q, q + q_len)`, keys `[k, k + k_len)`."""

    q: int
    q_len: int
    k: int
    k_len: int


@dataclass(frozen=True, slots=True)
class Call:
    """Queries with equally many padded keys."""

    queries: tuple[int, ...]
    keys: torch.Tensor
    """Indices of the padded keys: (entries * length,), or (length,) if the entries share them."""
    length: int
    """The padded number of keys."""
    hidden: torch.Tensor
    """(entries, 1, 1, length) booleans: true for keys that an entry does not see."""


class Plan:
    """The calls for some requests, made once and used by every layer."""

    def __init__(self, segments: Sequence[Segment]):
        self._segments = segments
        self._masks: dict[tuple[int, torch.dtype, int], torch.Tensor] = {}

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """All calls; requests of one query share calls, others have calls of their own."""
        prompts = [each for each in self._segments if each.q_len > 1]
        with _plain_tensors():
            return (
                *_calls_of_single([each for each in self._segments if each.q_len == 1]),
                *(call for each in prompts for call in _calls_of_prompt(each)),
            )

    @cached_property
    def keys(self) -> torch.Tensor:
        """Indices of the padded keys of all calls, one call after another."""
        with _plain_tensors():
            return torch.cat([call.keys for call in self.calls])

    @cached_property
    def order(self) -> torch.Tensor | None:
        """Indices of the queries in the order of the calls; None if that is their own order."""
        queries = [query for call in self.calls for query in call.queries]
        with _plain_tensors():
            return None if queries == [*range(len(queries))] else torch.tensor(queries)

    def mask(self, number: int, dtype: torch.dtype, rows: int) -> torch.Tensor:
        """The mask of a call, (entries, 1, rows, length), added to its scores."""
        mask = self._masks.get((number, dtype, rows))
        if mask is None:
            hidden = self.calls[number].hidden
            with _plain_tensors():
                mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
                mask = mask.expand(-1, -1, rows, -1)
            self._masks[number, dtype, rows] = mask
        return mask


class Packing:
    """Requests packed along the length. Made once a step, see `packing_of`."""

    def __init__(self, segments: Sequence[Segment]):
        self.segments = tuple(segments)
        self.prompts = tuple(each for each in self.segments if each.q_len > 1)
        """Requests with several queries."""
        self.longest = max((each.k_len for each in self.segments), default=0)
        """Keys of the longest request."""
        self._within: dict[int, Plan] = {}

    @cached_property
    def singles(self) -> Plan:
        """The requests with one query."""
        return Plan([each for each in self.segments if each.q_len == 1])

    @cached_property
    def one_by_one(self) -> Plan:
        """All requests, each query by itself."""
        return Plan(self.segments)

    def within(self, window: int) -> Plan:
        """All requests, each query by itself with the last `window` keys that end at its own."""
        if window not in self._within:
            self._within[window] = Plan(
                [query for each in self.segments for query in _queries_within(window, each)]
            )
        return self._within[window]


def _queries_within(window: int, segment: Segment) -> Iterator[Segment]:
    for query in range(segment.q_len):
        stop = segment.k_len - segment.q_len + query + 1
        seen = min(window, stop)
        yield Segment(segment.q + query, 1, segment.k + stop - seen, seen)


@lru_cache(maxsize=16)
def packing_of(q_bounds: tuple[int, ...], k_bounds: tuple[int, ...]) -> Packing:
    """Requests from cumulative lengths (requests + 1); empty ones (padding) are left out."""
    lengths = zip(pairwise(q_bounds), pairwise(k_bounds), strict=False)
    return Packing(
        [
            Segment(q, q_end - q, k, k_end - k)
            for (q, q_end), (k, k_end) in lengths
            if q_end > q and k_end > k
        ]
    )


@lru_cache(maxsize=16)
def padded_packing_of(starts: tuple[int, ...], q_len: int, k_len: int) -> Packing:
    """Rows padded on the left, one after another; `starts` are their first keys."""
    past = k_len - q_len
    return Packing(
        [
            Segment(row * q_len + skip, q_len - skip, row * k_len + start, k_len - start)
            for row, start in enumerate(starts)
            if (skip := max(0, start - past)) < q_len
        ]
    )


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Tensors made inside can be kept: autograd may save them, and no dispatch mode sees them."""
    with torch.inference_mode(False), _disable_current_modes(), torch.device("cpu"):
        yield


def _calls_of_single(segments: Sequence[Segment]) -> Iterator[Call]:
    groups: dict[int, list[Segment]] = {}
    for each in segments:
        groups.setdefault(_padded(each.k_len), []).append(each)
    for length, group in groups.items():
        for at in range(0, len(group), MAX_ENTRIES):
            part = group[at : at + MAX_ENTRIES]
            start = torch.tensor([each.k for each in part])[:, None]
            k_len = torch.tensor([each.k_len for each in part])[:, None]
            place = torch.arange(length)
            keys = start + torch.minimum(place, k_len - 1)
            hidden = (place >= k_len)[:, None, None]
            yield Call(tuple(each.q for each in part), keys.reshape(-1), length, hidden)


def _calls_of_prompt(segment: Segment) -> Iterator[Call]:
    """Queries of one request. The entries of a call share their keys."""
    first = segment.k_len - segment.q_len
    for length in range(_padded(first + 1), _padded(segment.k_len) + 1, KEY_STEP):
        seen = range(max(first + 1, length - KEY_STEP + 1), min(segment.k_len, length) + 1)
        place = torch.arange(length)
        keys = segment.k + place.clamp(max=segment.k_len - 1)
        hidden = (place >= torch.tensor(seen)[:, None])[:, None, None]
        yield Call(tuple(segment.q + n - 1 - first for n in seen), keys, length, hidden)


def _padded(k_len: int) -> int:
    return -(-k_len // KEY_STEP) * KEY_STEP
