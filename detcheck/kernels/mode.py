"""The batch-invariant mode: which stock ops are overridden now, and the proof that they are.

Overrides are process-wide (PyTorch's dispatcher and transformers' attention table are), so a mode
entered in one thread holds in all. Modes nest: each op family counts its holders and is restored
when the last one leaves, in any order and through exceptions.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from detcheck.errors import UsageError
from detcheck.kernels.compiled import as_written, run_eagerly
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.first_passes import FIRST_PASSES, Listener
from detcheck.kernels.fused.classes import FUSED
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
    """The overrides of a mode, their calls, and the result of its self-check."""

    families: tuple[str, ...]
    overrides: dict[str, int]
    """Calls that each override served while this mode was on."""
    self_check: str
    """`passed`, or a sentence that says what was found wrong."""
    pack_weights: str = "off"
    """`on`, `off`, or a sentence that says which weights did not fit into memory."""
    packed_bytes: int = 0
    """Memory that packed copies of weights take."""
    outside: dict[str, int] = field(default_factory=dict)
    """Calls of floating-point ops that no kernel covers, by op, in a model's first passes.

    Only watched for if all op families are on. A proof with any is no proof.
    """
    unchecked: tuple[str, ...] = ()
    """Classes of models that were called, whose padding matters and was not refused."""
    too_long: tuple[str, ...] = ()
    """The fault of the first forward pass of each model that was longer than its limit."""

    @property
    def fault(self) -> str | None:
        """Why this proves nothing, in a sentence; None if all checks passed."""
        if self.self_check != PASSED:
            return self.self_check
        if self.outside:
            ops = ", ".join(list(self.outside)[:5])
            return f"ops ran that no batch-invariant kernel covers: {ops}"
        if self.unchecked:
            return (
                f"the rows of {self.unchecked[0]} depend on their padding, which was not refused: "
                "use `batch_invariant(model=model)`"
            )
        if self.too_long:
            return f"{self.too_long[0]}: use shorter requests"
        return None

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
        self._on_exit = ExitStack()
        self._listener: Listener | None = None
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
        """The overrides since the mode was entered, and their calls.

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
            {} if self._listener is None else self._listener.outside,
            () if self._listener is None else self._listener.unchecked,
            () if self._listener is None else tuple(self._listener.too_long.values()),
        )

    def guards(self, model: torch.nn.Module) -> None:
        """Note that padding is refused for `model` as long as this mode is on."""
        if self._listener is not None:
            self._listener.guarded = FIRST_PASSES.known(model)

    def _enter(self) -> None:
        with _lock:
            for family in self.families:
                _hold(family)
                self._held.append(family)
        self._on_exit.callback(run_eagerly())
        if "matmul" in self.families:
            self._on_exit.callback(STORE.hold(self._pack_weights))
        if {*OP_FAMILIES} <= {*self.families}:
            self._listener, leave = FIRST_PASSES.listen()
            self._on_exit.callback(leave)
            self._on_exit.callback(
                FUSED.hold({name: each.calls for name, each in _families.items()})
            )
        self._self_check = self_check({family: _families[family].calls for family in self.families})
        self._before = {family: Counter(_families[family].calls) for family in self.families}
        self._active = True

    def _exit(self) -> None:
        if self._active:
            self._observe()
            self._active = False
        self._on_exit.close()
        with _lock:
            while self._held:
                _release(self._held.pop())

    def _observe(self) -> None:
        """Note the calls up to now, and the packed weights."""
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
    ops: Iterable[str] | None = None,
    *,
    model: torch.nn.Module | None = None,
    pack_weights: str = "auto",
) -> Iterator[BatchInvariantMode]:
    """Within this context every output row is bitwise independent of the rest of its batch.

    `ops` names op families (`matmul`, `attention`, `norm`, `softmax`, `reduce`, `pointwise`); all
    of them by default. `prefill` beside them makes the rows independent of how a prompt is cut
    into steps and of whether it is prefilled or decoded, too. Works on CPUs and CUDA GPUs for any
    causal LM of transformers, in static and continuous batching; gradients are those of the stock
    formulas. Functions compiled by `torch.compile` run eagerly inside. Process-wide, not per
    thread; nests; stock ops are restored on exceptions.

    With `model`, a causal LM of transformers, a short run first checks that all its ops are
    covered. A model that computes with its padding is held for requests of one length: inside, a
    forward pass of it with padding raises UsageError. So does a pass that is too long, of a model
    that rescales the positions of a batch by its longest row. Without `model` the first two
    forward passes inside are watched: ops that are not covered are in `mode.proof().outside`, and
    `mode.proof().fault` says so. Padding is not refused then. The fault also names a causal model
    whose state (Mamba 2) or positions (BART) depend on padding, or whose own code drops its mask,
    and a pass that was too long.

    `pack_weights="auto"` keeps packed copies of linear layers' parameters on the CPU while the
    mode is on: faster than stock, for as much memory as the weights take. Copies that would take
    more than half of the free memory are not made; `"off"` makes none.

    Raises UsageError for an unknown family, for none at all, for another `pack_weights`, and for a
    `model` whose ops are not covered.

        with detcheck.batch_invariant(model=model) as mode:
            model.generate(...)
        print(mode.proof())
    """
    families = _checked_families(ops)
    if pack_weights not in PACKING:
        raise UsageError(f"`pack_weights` must be auto or off, not {pack_weights!r}.")
    with ExitStack() as stack:
        if model is not None:
            model = as_written(model)
            stack.callback(_checked(model))
        mode = BatchInvariantMode(families, pack_weights == "auto")
        stack.callback(mode._exit)
        mode._enter()
        if model is not None:
            mode.guards(model)
        yield mode


def _checked(model: torch.nn.Module) -> Callable[[], None]:
    """Refuse a model that is not covered, or else its padding, until the result is called.

    So with passes that are too long for a model.
    """
    from detcheck.kernels.coverage import require_coverage
    from detcheck.kernels.length_limits import refuse_long_passes
    from detcheck.kernels.one_length import refuse_padding

    name = type(model).__name__
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise UsageError(
            f"`model` must be a causal language model of transformers, not {name}: load one, or "
            "leave `model` out."
        )
    on_exit = ExitStack()
    if require_coverage(model, name, one_length=True).one_length:
        on_exit.callback(refuse_padding(model, name))
    on_exit.callback(refuse_long_passes(model, name))
    return on_exit.close


def _checked_families(ops: Iterable[str] | None) -> tuple[str, ...]:
    named = (ops,) if isinstance(ops, str) else ops
    families = tuple(dict.fromkeys(OP_FAMILIES if named is None else named))
    if not families:
        raise UsageError(f"Name at least one op family: known are {', '.join(FAMILIES)}.")
    for family in families:
        if family not in FAMILIES:
            raise UsageError(f"Unknown op family {family!r}: known are {', '.join(FAMILIES)}.")
    return families


def keep_packed_weights() -> Callable[[], None]:
    """Keep packed copies from one mode to the next, until the returned function is called.

    For a caller that enters a mode many times with the same model, such as an engine.
    """
    return STORE.keep()


def active_families() -> tuple[str, ...]:
    """Op families that are overridden now, by any mode in this process."""
    return tuple(family for family, state in _families.items() if state.holders)


def whole_mode_is_on() -> bool:
    """True if all op families are overridden now: then rows are claimed to be invariant."""
    return {*OP_FAMILIES} <= {*active_families()}


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
