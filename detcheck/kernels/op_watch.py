"""Watches the ops of a model and sorts them: invariant, and why, or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.kernels.module_path import ModulePath
from detcheck.kernels.op_rules import OpRules, name_of
from detcheck.kernels.overrides import ATTENTION_NAMES, ATTENTION_OP


@dataclass(frozen=True, slots=True)
class Uncovered:
    """An op that nothing here makes invariant, and the first module in which it ran."""

    op: str
    """Such as `aten::topk`."""
    module: str


@dataclass(slots=True)
class CoveredOp:
    """An op that ran and is invariant."""

    op: str
    by: str
    """Such as `the matmul kernels`, or `moves values only`."""
    module: str
    """The first module in which it ran."""
    calls: int = 0


class AttentionWatch(TorchDispatchMode):
    """A context whose `_inside_attention` is true while our attention runs."""

    def __init__(self) -> None:
        super().__init__()
        self._inside_attention: list[bool] = []
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        self._stack.enter_context(_marked_attention(self._inside_attention))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()


class OpWatch(AttentionWatch):
    """A context that keeps the ops which run inside it, with the module that was computing.

    Ops inside our attention count as one op of its own, `transformers::sdpa`.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.covered: dict[str, CoveredOp] = {}
        self.uncovered: dict[str, Uncovered] = {}
        self.outside: Counter[str] = Counter()
        """Calls of the ops that are not covered."""
        self._module_path = ModulePath(model)
        first = next(model.parameters(), None)
        self._rules = OpRules("cpu" if first is None else first.device.type, model.parameters())

    def __enter__(self) -> Any:
        self._stack.enter_context(self._module_path.follow())
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # There composite ops arrive whole, elsewhere as the ops that they are made of.
            result = self._decompose(func, args, kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        module = self._module_path.current
        if self._inside_attention:
            self._keep(ATTENTION_OP, "the attention kernels", module)
            return result
        reason = self._rules.reason(func, args, kwargs, result)
        if reason is not None:
            self._keep(func._schema.name, reason, module)
        else:
            name = name_of(func)
            self.outside[name] += 1
            self.uncovered.setdefault(name, Uncovered(name, module))
        return result

    def _decompose(self, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        """Call a composite op and watch what it is made of; NotImplemented for other ops."""
        mode: Any = super(AttentionWatch, self)  # alone: attention stays marked
        mode.__enter__()
        try:
            return func.decompose(*args, **kwargs)
        finally:
            mode.__exit__(None, None, None)

    def _keep(self, op: str, by: str, module: str) -> None:
        self.covered.setdefault(op, CoveredOp(op, by, module)).calls += 1


@contextmanager
def _marked_attention(inside: list[bool]) -> Iterator[None]:
    """Make `inside` true while attention runs that was called through transformers' interface."""
    from transformers import AttentionInterface

    table: dict[str, Any] = AttentionInterface._global_mapping
    entries = {name: table[name] for name in ATTENTION_NAMES if name in table}

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        def attend(*args: Any, **kwargs: Any) -> Any:
            inside.append(True)
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()

        return attend

    table.update({name: marked(function) for name, function in entries.items()})
    try:
        yield
    finally:
        table.update(entries)
