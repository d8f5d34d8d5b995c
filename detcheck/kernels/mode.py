"""The batch-invariant mode: which stock ops are overridden now, and the proof that they are.

Overrides are process-wide (PyTorch's dispatcher and transformers' attention table are), so a mode
entered in one thread holds in all. Modes nest: each op family counts its holders and is restored
when the last one leaves, in whatever order and through exceptions.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.errors import UsageError
from detcheck.experiment import OP_FAMILIES
from detcheck.kernels import attention as attention_kernel
from detcheck.kernels.cpu import matmul as cpu_matmul

ATTENTION_NAME = "sdpa"
"""Entry of transformers' attention table that both static and continuous batching use."""

_CPU_MATMUL: dict[str, Callable[..., torch.Tensor]] = {
    "mm": cpu_matmul.mm,
    "addmm": cpu_matmul.addmm,
    "bmm": cpu_matmul.bmm,
}


@dataclass(slots=True)
class _Family:
    """One op family while it is held: its calls, and how to take the overrides away."""

    holders: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    remove: Callable[[], None] | None = None


_lock = threading.RLock()
_families = {family: _Family() for family in OP_FAMILIES}


@dataclass(frozen=True, slots=True)
class Proof:
    """What a mode overrode, what of it was seen to run, and whether its self-check passed."""

    families: tuple[str, ...]
    overrides: dict[str, int]
    """Calls that each override served while this mode was on."""
    self_check: str
    """`passed`, or a sentence that says what was found wrong."""

    @property
    def idle_families(self) -> tuple[str, ...]:
        """Families that were switched on and never ran: nothing is known of their effect."""
        return tuple(
            family
            for family in self.families
            if not any(n for op, n in self.overrides.items() if op in _op_names(family))
        )


class BatchInvariantMode:
    """A mode that is on; `proof()` says what it did up to now."""

    def __init__(self, families: tuple[str, ...]):
        self.families = families
        self._before: dict[str, Counter[str]] = {}
        self._served: Counter[str] = Counter()
        self._active = False
        self._self_check = "not run"

    def proof(self) -> Proof:
        """What was overridden and seen to run since the mode was entered.

        The self-check's own calls do not count.
        """
        served = self._served + self._running() if self._active else self._served
        names = [name for family in self.families for name in _op_names(family)]
        return Proof(self.families, {name: served[name] for name in names}, self._self_check)

    def _enter(self) -> None:
        with _lock:
            for family in self.families:
                _hold(family)
        self._self_check = self_check(self.families)
        self._before = {family: Counter(_families[family].calls) for family in self.families}
        self._active = True

    def _exit(self) -> None:
        if self._active:
            self._served = self._running()
            self._active = False
        with _lock:
            for family in self.families:
                _release(family)

    def _running(self) -> Counter[str]:
        calls: Counter[str] = Counter()
        for family, before in self._before.items():
            calls += _families[family].calls - before
        return calls


@contextmanager
def batch_invariant(ops: Iterable[str] | None = None) -> Iterator[BatchInvariantMode]:
    """Within this context every output row is bitwise independent of the rest of its batch.

    `ops` names op families (`matmul`, `attention`); all of them by default. Works for CPU tensors
    and any transformers causal LM with `sdpa` attention, in static and continuous batching;
    gradients are those of the stock formulas. Process-wide, not per thread; nests; restored on
    exceptions. Raises UsageError for an unknown family.

        with detcheck.batch_invariant() as mode:
            model.generate(...)
        print(mode.proof())
    """
    families = tuple(dict.fromkeys(OP_FAMILIES if ops is None else ops))
    for family in families:
        if family not in OP_FAMILIES:
            raise UsageError(f"Unknown op family {family!r}: known are {', '.join(OP_FAMILIES)}.")
    mode = BatchInvariantMode(families)
    try:
        mode._enter()
        yield mode
    finally:
        mode._exit()


def active_families() -> tuple[str, ...]:
    """Op families that are overridden now, by any mode in this process."""
    return tuple(family for family, state in _families.items() if state.holders)


def _op_names(family: str) -> tuple[str, ...]:
    if family == "attention":
        return ("transformers::sdpa",)
    return tuple(f"aten::{name}" for name in _CPU_MATMUL)


def _hold(family: str) -> None:
    state = _families[family]
    if state.holders == 0:
        install = _install_attention if family == "attention" else _install_matmul
        state.remove = install(state.calls)
    state.holders += 1


def _release(family: str) -> None:
    state = _families[family]
    if state.holders == 0:  # entering failed before this family was held
        return
    state.holders -= 1
    if state.holders == 0 and state.remove is not None:
        state.remove()
        state.remove = None


def _install_matmul(calls: Counter[str]) -> Callable[[], None]:
    stock_linear = F.linear
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in _CPU_MATMUL.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid.*", category=UserWarning)
            library.impl(name, _counted(f"aten::{name}", kernel, calls), "CPU")
    F.linear = _counted("aten::mm", cpu_matmul.linear, calls)

    def remove() -> None:
        F.linear = stock_linear
        library._destroy()

    return remove


def _install_attention(calls: Counter[str]) -> Callable[[], None]:
    from transformers import AttentionInterface

    table: dict[str, Any] = AttentionInterface._global_mapping
    stock = table[ATTENTION_NAME]
    table[ATTENTION_NAME] = _counted("transformers::sdpa", attention_kernel.attention, calls)

    def remove() -> None:
        table[ATTENTION_NAME] = stock

    return remove


def _counted(name: str, kernel: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return kernel(*args, **kwargs)

    return counted


def self_check(families: Iterable[str]) -> str:
    """Compare a row alone with the same row in a batch through the public ops.

    Returns `passed`, or a sentence that says what differed or which override was not reached.
    """
    checks = {"matmul": _check_matmul, "attention": _check_attention}
    for family in families:
        problem = checks[family]()
        if problem:
            return problem
    return "passed"


def _check_matmul() -> str | None:
    generator = torch.Generator().manual_seed(1)
    before = _families["matmul"].calls["aten::mm"]
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.randn(5, 1536, generator=generator).to(dtype)
        weight = torch.randn(64, 1536, generator=generator).to(dtype)
        if not torch.equal(F.linear(rows, weight)[:1], F.linear(rows[:1], weight)):
            return f"matmul in {dtype} gives a row alone another result than in a batch of 5"
    if _families["matmul"].calls["aten::mm"] == before:
        return "the matmul override was installed but F.linear does not reach it"
    return None


def _check_attention() -> str | None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    before = _families["attention"].calls["transformers::sdpa"]
    generator = torch.Generator().manual_seed(2)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    query = torch.randn(4, 6, 1, 32, generator=generator)
    key, value = torch.randn(2, 4, 2, 40, 32, generator=generator)
    batch, _ = function(module, query, key, value, None)
    alone, _ = function(module, query[2:3], key[2:3], value[2:3], None)
    if not torch.equal(batch[2:3], alone):
        return "attention gives a request alone another result than in a batch of 4"
    if _families["attention"].calls["transformers::sdpa"] == before:
        return "the attention override was installed but transformers does not reach it"
    return None
