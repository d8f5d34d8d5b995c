"""The batch-invariant mode: which stock ops are overridden now, and the proof that they are.

Overrides are process-wide (PyTorch's dispatcher and transformers' attention table are), so a mode
entered in one thread holds in all. Modes nest: each op family counts its holders and is restored
when the last one leaves, in whatever order and through exceptions.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from detcheck.errors import UsageError
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.overrides import install, op_names
from detcheck.kernels.self_check import PASSED, self_check
from detcheck.kernels.settings import FAMILIES, OP_FAMILIES


@dataclass(slots=True)
class _Family:
    """One op family while it is held: its calls, and how to take the overrides away."""

    holders: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    remove: Callable[[], None] | None = None


PACKING = ("auto", "off")
"""Values of `pack_weights`."""

_lock = threading.RLock()
_families = {family: _Family() for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class Proof:
    """What a mode overrode, what of it was seen to run, and whether its self-check passed."""

    families: tuple[str, ...]
    overrides: dict[str, int]
    """Calls that each override served while this mode was on."""
    self_check: str
    """`passed`, or a sentence that says what was found wrong."""
    pack_weights: str = "off"
    """`on`, `off`, or a sentence that says which weights did not fit into memory."""
    packed_bytes: int = 0
    """Memory that packed copies of weights take."""

    @property
    def idle_families(self) -> tuple[str, ...]:
        """Families that were switched on and never ran: nothing is known of their effect."""
        return tuple(
            family
            for family in self.families
            if not any(n for op, n in self.overrides.items() if op in op_names(family))
        )


class BatchInvariantMode:
    """A mode that is on; `proof()` says what it did up to now."""

    def __init__(self, families: tuple[str, ...], pack_weights: bool):
        self.families = families
        self._pack_weights = pack_weights
        self._release_weights: Callable[[], None] | None = None
        self._held: list[str] = []
        self._before: dict[str, Counter[str]] = {}
        self._served: Counter[str] = Counter()
        self._active = False
        self._self_check = "not run"
        self._packing = "off"
        self._packed_bytes = 0
        self._verified: Counter[str] = Counter()
        """Calls served when the packed weights were last compared with the parameters."""

    def proof(self) -> Proof:
        """What was overridden and seen to run since the mode was entered.

        The self-check's own calls do not count.
        """
        if self._active:
            self._observe()
        names = [name for family in self.families for name in op_names(family)]
        return Proof(
            self.families,
            {name: self._served[name] for name in names},
            self._self_check,
            self._packing,
            self._packed_bytes,
        )

    def _enter(self) -> None:
        with _lock:
            for family in self.families:
                _hold(family)
                self._held.append(family)
        if "matmul" in self.families:
            self._release_weights = STORE.hold(self._pack_weights)
        self._self_check = self_check({family: _families[family].calls for family in self.families})
        self._before = {family: Counter(_families[family].calls) for family in self.families}
        self._active = True

    def _exit(self) -> None:
        if self._active:
            self._observe()
            self._active = False
        if self._release_weights is not None:
            self._release_weights()
            self._release_weights = None
        with _lock:
            while self._held:
                _release(self._held.pop())

    def _observe(self) -> None:
        """Take note of what ran up to now, and of the packed weights."""
        self._served = self._running()
        if "matmul" in self.families:
            self._packing, self._packed_bytes = STORE.state, STORE.num_bytes
            if self._self_check == PASSED and self._served != self._verified:
                self._self_check = STORE.verify() or PASSED
                self._verified = self._served

    def _running(self) -> Counter[str]:
        calls: Counter[str] = Counter()
        for family, before in self._before.items():
            calls += _families[family].calls - before
        return calls


@contextmanager
def batch_invariant(
    ops: Iterable[str] | None = None, *, pack_weights: str = "auto"
) -> Iterator[BatchInvariantMode]:
    """Within this context every output row is bitwise independent of the rest of its batch.

    `ops` names op families (`matmul`, `attention`, `norm`, `softmax`, `reduce`, `pointwise`); all
    of them by default. `prefill` beside them makes the rows independent of how a prompt is cut
    into steps and of whether it is prefilled or decoded, too. Works on CPUs and CUDA GPUs for any
    transformers causal LM with `sdpa` attention, in static and continuous batching; gradients are
    those of the stock formulas. Process-wide, not per thread; nests; restored on
    exceptions.

    `pack_weights="auto"` keeps packed copies of linear layers' parameters on the CPU while the
    mode is on: faster than stock, for as much memory as the weights take. Copies that would take
    more than half of the free memory are not made; `"off"` makes none. Raises UsageError for an
    unknown family, for none at all, and for another `pack_weights`.

        with detcheck.batch_invariant() as mode:
            model.generate(...)
        print(mode.proof())
    """
    named = (ops,) if isinstance(ops, str) else ops
    families = tuple(dict.fromkeys(OP_FAMILIES if named is None else named))
    if not families:
        raise UsageError(f"Name at least one op family: known are {', '.join(FAMILIES)}.")
    for family in families:
        if family not in FAMILIES:
            raise UsageError(f"Unknown op family {family!r}: known are {', '.join(FAMILIES)}.")
    if pack_weights not in PACKING:
        raise UsageError(f"`pack_weights` must be auto or off, not {pack_weights!r}.")
    mode = BatchInvariantMode(families, pack_weights == "auto")
    try:
        mode._enter()
        yield mode
    finally:
        mode._exit()


def keep_packed_weights() -> Callable[[], None]:
    """Keep packed copies from one mode to the next, until the returned function is called.

    For a caller that enters a mode many times with the same model, such as an engine.
    """
    return STORE.keep()


def active_families() -> tuple[str, ...]:
    """Op families that are overridden now, by any mode in this process."""
    return tuple(family for family, state in _families.items() if state.holders)


def _hold(family: str) -> None:
    state = _families[family]
    if state.holders == 0:
        state.remove = install(family, state.calls)
    state.holders += 1


def _release(family: str) -> None:
    state = _families[family]
    state.holders -= 1
    if state.holders == 0 and state.remove is not None:
        state.remove()
        state.remove = None
