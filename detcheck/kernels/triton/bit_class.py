"""Ways to compute one thing that give bitwise equal results, found by experiment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

import torch

from detcheck.kernels.triton.launch import capturing

Way = TypeVar("Way")
TIMED_CALLS = 8
HEAD_START_CYCLES = 6_000_000
"""Of the GPU, about 3 ms, in which it waits while the host launches what is timed. Otherwise a call
that takes the host longer than the GPU would be timed on the host."""


@dataclass(slots=True)
class BitClass(Generic[Way]):
    """The ways that give the bits of `anchor`; each is compared with it before its first use."""

    anchor: Way
    agrees: Callable[[Way], bool]
    """Whether a way gives the anchor's bits; may raise if the card does not take the way."""
    _chosen: dict[Hashable, Way] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Timing a way may choose another one for another purpose: rows that are left over."""

    def choose(
        self,
        purpose: Hashable,
        groups: Callable[[], Iterable[Sequence[Way]]],
        time: Callable[[Way], float] | None = None,
    ) -> Way:
        """The way for a `purpose`, decided once: the fastest of the first group with a member.

        `groups` gives ways in order of preference. `time` gives the milliseconds of a way; without
        it the first member of the group is used. If no group has a member, and while a CUDA graph
        is captured, in which nothing can be tried, the anchor is used.
        """
        chosen = self._chosen.get(purpose)
        if chosen is None:
            if capturing():
                return self.anchor
            with self._lock:
                chosen = self._chosen[purpose] = self._search(groups(), time)
        return chosen

    def members(self, ways: Sequence[Way]) -> list[Way]:
        """Those of the ways that run on this card and give the anchor's bits."""
        return [way for way in ways if way == self.anchor or self._agrees_if_it_runs(way)]

    def _search(self, groups: Iterable[Sequence[Way]], time: Callable[[Way], float] | None) -> Way:
        found = next((members for group in groups if (members := self.members(group))), [])
        if time is not None and len(found) > 1:
            return min(found, key=time)
        return found[0] if found else self.anchor

    def _agrees_if_it_runs(self, way: Way) -> bool:
        try:
            return self.agrees(way)
        except Exception:  # the compiler or the driver may refuse a way on this card
            return False


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of a call on a GPU, operands not in its cache; infinity if it fails."""
    try:
        with torch.cuda.device(device):  # whose stream the events are recorded in
            call()
            return _timed(call)
    except Exception:  # such as too little memory for the buffer that clears the cache
        return float("inf")


def _timed(call: Callable[[], Any]) -> float:
    from triton.runtime import driver

    cache = driver.active.get_empty_cache_for_benchmark()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(TIMED_CALLS)]
    torch.cuda._sleep(HEAD_START_CYCLES)
    for before, after in events:
        driver.active.clear_cache(cache)
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return median(before.elapsed_time(after) for before, after in events)
