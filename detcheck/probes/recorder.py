"""Aten ops of a forward pass, seen from one request: hashes of its rows, and values where asked.

The reference is the request alone, so everything that it computes is its own. In a batch the
request's rows are cut out of each tensor: a dimension that is larger than alone is one that grows
with the load, and `Step.extents` says which entries are the request's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.probes.cutting import Shape, cut
from detcheck.probes.replay import Extent, Step

Key = tuple[str, str, int]
"""Module path, op, and its number among the same ops of that module in the same pass."""

_VIEWS = {
    *("view", "_unsafe_view", "transpose", "t", "slice", "select", "unsqueeze", "squeeze"),
    *("expand", "permute", "alias", "detach", "detach_", "split", "split_with_sizes", "chunk"),
    *("as_strided", "lift_fresh", "reshape", "flatten", "unflatten", "unbind", "narrow"),
}
"""Ops that compute nothing."""
_UNSET = {"empty", "empty_like", "new_empty", "empty_strided", "new_zeros", "zeros", "zeros_like"}
"""Ops whose results say nothing yet."""
LARGEST_BYTES = 8 << 20
"""Larger tensors (whole caches) are not looked into."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One tensor of the reference: its shape, and a hash of its bits."""

    shape: Shape
    digest: int


@dataclass(frozen=True, slots=True)
class Op:
    """One op of the reference."""

    inputs: tuple[Seen | None, ...]
    output: Seen | None


@dataclass(slots=True)
class Finding:
    """The first op whose output rows differ while its input rows agree."""

    step: int
    key: Key
    reference_shape: Shape
    shape: Shape
    inputs_compared: int
    indirect: bool = False
    """Not all of the op's own tensors can be laid side by side; its result was seen to differ as
    the input of a later op, while every op before it agreed."""


class Modules:
    """The path of the module that is computing now, kept by hooks."""

    def __init__(self, model: torch.nn.Module):
        self.path: list[str] = [""]
        self._hooks: list[Any] = []
        self._model = model

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Keep `path` up to date while inside."""
        for name, module in self._model.named_modules():
            if name:
                self._hooks.append(module.register_forward_pre_hook(self._enter(name)))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            del self.path[1:]

    def _enter(self, name: str) -> Any:
        return lambda *_: self.path.append(name)

    def _leave(self, *_: Any) -> None:
        self.path.pop()


class _Watch(TorchDispatchMode):
    """Calls `saw` on every op that computes."""

    def __init__(self, recorder: Recorder, step: Step):
        super().__init__()
        self._recorder = recorder
        self._step = step
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._following = recorder.modules.follow()

    def __enter__(self) -> Any:
        self._following.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._following.__exit__(None, None, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _VIEWS or name in _UNSET:
            return func(*args, **(kwargs or {}))
        inputs = self._recorder.look(self._step, args)
        result = func(*args, **(kwargs or {}))
        pair = (self._recorder.modules.path[-1], f"aten::{name}")
        key = (*pair, self._numbers[pair])
        self._numbers[pair] += 1
        output = result if isinstance(result, torch.Tensor) else None
        self._recorder.saw(self._step, key, inputs, output)
        return result


class Recorder:
    """Base of the two sides: what is done with each op is theirs."""

    def __init__(self, model: torch.nn.Module):
        self.modules = Modules(model)
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def watch(self, step: Step) -> Any:
        """A context that records one forward pass."""
        return _Watch(self, step)

    def look(self, step: Step, args: Sequence[Any]) -> Any:
        """Take what is needed of the inputs before the op may write on them."""
        raise NotImplementedError

    def saw(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        """An op came back."""
        raise NotImplementedError

    def _tensors(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """Tensors among the arguments, lists opened, weights left out."""
        opened = (x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,)))
        return [
            x
            for x in opened
            if isinstance(x, torch.Tensor)
            and x.untyped_storage().data_ptr() not in self._parameters
        ]


class Reference(Recorder):
    """The request alone: keeps shapes and hashes of its first `window` forward passes."""

    def __init__(self, model: torch.nn.Module, window: int):
        super().__init__(model)
        self.window = window
        self.ops: dict[tuple[int, Key], Op] = {}

    def watch(self, step: Step) -> Any:
        return super().watch(step) if step.index < self.window else None

    def look(self, step: Step, args: Sequence[Any]) -> Any:
        return tuple(_seen(x) for x in self._tensors(args))

    def saw(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        self.ops[step.index, key] = Op(inputs, None if output is None else _seen(output))


@dataclass(slots=True)
class Compared:
    """What a comparison looked at."""

    ops: int = 0
    tensors: int = 0
    steps: set[int] = field(default_factory=set)


class Comparison(Recorder):
    """The request in a batch: holds each op against the reference until one differs."""

    def __init__(self, model: torch.nn.Module, reference: Reference):
        super().__init__(model)
        self._reference = reference
        self.found: Finding | None = None
        self.compared = Compared()
        self._blind: tuple[int, Key, Shape, Shape] | None = None
        """The last op whose result or inputs could not be laid beside the reference's."""

    def watch(self, step: Step) -> Any:
        if self.found is not None or step.index >= self._reference.window:
            return None
        self.compared.steps.add(step.index)
        return super().watch(step)

    def look(self, step: Step, args: Sequence[Any]) -> Any:
        return self._tensors(args)

    def saw(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        if self.found is not None:
            return
        op = self._reference.ops.get((step.index, key))
        if op is None or output is None or op.output is None:
            self._pass_blindly(step, key, op, output)
            return
        agreements = [
            _agrees(x, seen, step.extents)
            for x, seen in zip(inputs, op.inputs, strict=False)
            if x is not output  # written in place: what it held before is gone
        ]
        if False in agreements:
            self._blame_what_was_not_seen(step, key, op.output.shape, output)
            return
        same = _agrees(output, op.output, step.extents)
        if same is None:
            self._pass_blindly(step, key, op, output)
            return
        self.compared.ops += 1
        self.compared.tensors += 1 + sum(a is not None for a in agreements)
        if same:
            return
        if True not in agreements:  # it may be this op, or one before that was not seen either
            self._blind = (step.index, key, op.output.shape, tuple(output.shape))
            return
        self.found = Finding(
            step.index,
            key,
            op.output.shape,
            tuple(output.shape),
            sum(a is not None for a in agreements),
        )

    def _pass_blindly(
        self, step: Step, key: Key, op: Op | None, output: torch.Tensor | None
    ) -> None:
        if op is None or output is None or op.output is None or not output.is_floating_point():
            return
        if len(op.output.shape) > 1 and tuple(output.shape) != op.output.shape:
            self._blind = (step.index, key, op.output.shape, tuple(output.shape))

    def _blame_what_was_not_seen(
        self, step: Step, key: Key, alone: Shape, output: torch.Tensor
    ) -> None:
        """An input differs though no result did: it came from the last op that was not seen."""
        blind = self._blind or (step.index, key, alone, tuple(output.shape))
        self.found = Finding(*blind, inputs_compared=0, indirect=True)


class Keeper(Recorder):
    """Keeps what one op gives, to be measured."""

    def __init__(self, model: torch.nn.Module, finding: Finding):
        super().__init__(model)
        self._finding = finding
        self.output: torch.Tensor | None = None
        """The whole output, on the CPU."""
        self.extents: tuple[Extent, ...] = ()

    def watch(self, step: Step) -> Any:
        return super().watch(step) if step.index == self._finding.step else None

    def look(self, step: Step, args: Sequence[Any]) -> Any:
        return None

    def saw(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        if key == self._finding.key and output is not None:
            self.output, self.extents = output.detach().cpu().clone(), step.extents


def _seen(x: torch.Tensor) -> Seen | None:
    if x.numel() * x.element_size() > LARGEST_BYTES or not x.numel():
        return None
    return Seen(tuple(x.shape), digest(x))


def digest(x: torch.Tensor) -> int:
    """A hash of the bits of `x`, of its shape only the order of elements; this process only."""
    flat = x.detach().contiguous().cpu().reshape(-1)
    if flat.is_floating_point() or flat.is_complex() or flat.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    return hash(flat.numpy().tobytes())


def _agrees(x: torch.Tensor, seen: Seen | None, extents: tuple[Extent, ...]) -> bool | None:
    """Whether the request's rows of `x` are the reference's; None where they cannot be told.

    Only tensors that grow with the load are judged: the rest is either shared by all requests or
    belongs to one of them, and it is not said to which.
    """
    if seen is None or not x.is_floating_point():
        return None
    rows = cut(x, seen.shape, extents)
    return None if rows is None else digest(rows) == seen.digest
