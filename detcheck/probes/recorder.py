"""Records the aten ops of a forward pass for one request: hashes of its rows, or values.

The reference is the request alone: all of its tensors belong to the request. In a batch the
request's rows are cut out of each tensor. A dimension that is longer than alone grows with the
load, and `RequestPlace.extents` gives the request's entries in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.engines.passes import Extent
from detcheck.kernels.module_path import ModulePath
from detcheck.probes.calls import OpCall
from detcheck.probes.cutting import Shape, cut
from detcheck.probes.replay import Step

Key = tuple[str, str, int]
"""Module path, op, and its number among the same ops of that module in the same pass."""

_VIEWS = {
    *("view", "_unsafe_view", "transpose", "t", "slice", "select", "unsqueeze", "squeeze"),
    *("expand", "permute", "alias", "detach", "detach_", "split", "split_with_sizes", "chunk"),
    *("as_strided", "lift_fresh", "reshape", "flatten", "unflatten", "unbind", "narrow"),
}
"""Ops that only change the view of a tensor."""
_UNSET = {"empty", "empty_like", "new_empty", "empty_strided", "new_zeros", "zeros", "zeros_like"}
"""Ops whose results hold no computed values yet."""
LARGEST_BYTES = 8 << 20
"""Larger tensors (whole caches) are not compared."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """One tensor of the reference: its shape, and a hash of its bits."""

    shape: Shape
    digest: int


@dataclass(frozen=True, slots=True)
class RecordedOp:
    """One op of the reference; None stands for a tensor that is too large or empty."""

    inputs: tuple[TensorDigest | None, ...]
    output: TensorDigest | None


@dataclass(slots=True)
class DifferingOp:
    """The first op whose output rows differ while its input rows agree."""

    step: int
    key: Key
    reference_shape: Shape
    shape: Shape
    inputs_compared: int
    indirect: bool = False
    """If true, not all of the op's own tensors could be compared. Its result differs as the input
    of a later op, and every op before it agreed."""


class _Watch(TorchDispatchMode):
    """Hands every op that computes to the recorder, before and after it runs."""

    def __init__(self, recorder: OpRecorder, step: Step):
        super().__init__()
        self._recorder = recorder
        self._step = step
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._following = recorder.module_path.follow()

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
        full_name = name if "::" in name else f"aten::{name}"
        pair = (self._recorder.module_path.current, full_name)
        key = (*pair, self._numbers[pair])
        self._numbers[pair] += 1
        self._recorder.called(self._step, key, func, args, kwargs or {})
        inputs = self._recorder.before(self._step, args)
        result = func(*args, **(kwargs or {}))
        output = result if isinstance(result, torch.Tensor) else None
        self._recorder.after(self._step, key, inputs, output)
        return result


class OpRecorder:
    """Base of the recorders; a subclass keeps or compares each op."""

    def __init__(self, model: torch.nn.Module):
        self.module_path = ModulePath(model)
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def watch(self, step: Step) -> Any:
        """A context that records one forward pass; see `StepObserver`."""
        return _Watch(self, step)

    def called(
        self, step: Step, key: Key, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Called before an op with the whole call, for a subclass that keeps calls."""

    def before(self, step: Step, args: Sequence[Any]) -> Any:
        """Called before an op: the record of its inputs, since the op may overwrite them."""
        raise NotImplementedError

    def after(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        """Called after an op with the record from `before`; `output` is None if it is no tensor."""
        raise NotImplementedError

    def _tensors(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """Tensors among the arguments and in lists of them, without the weights."""
        opened = (x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,)))
        return [
            x
            for x in opened
            if isinstance(x, torch.Tensor)
            and x.untyped_storage().data_ptr() not in self._parameters
        ]


class ReferenceRecorder(OpRecorder):
    """The request alone: keeps shapes and hashes of its first `window` forward passes."""

    def __init__(self, model: torch.nn.Module, window: int):
        super().__init__(model)
        self.window = window
        self.ops: dict[tuple[int, Key], RecordedOp] = {}

    def watch(self, step: Step) -> Any:
        """See `OpRecorder.watch`; None beyond the window."""
        return super().watch(step) if step.index < self.window else None

    def before(self, step: Step, args: Sequence[Any]) -> Any:
        """Digests of the input tensors."""
        return tuple(_digest_of(x) for x in self._tensors(args))

    def after(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        """Keep the op."""
        self.ops[step.index, key] = RecordedOp(
            inputs, None if output is None else _digest_of(output)
        )


@dataclass(slots=True)
class Compared:
    """Counts of the ops, tensors and steps compared."""

    ops: int = 0
    tensors: int = 0
    steps: set[int] = field(default_factory=set)


class ComparingRecorder(OpRecorder):
    """The request in a batch: compares each op with the reference until one differs."""

    def __init__(self, model: torch.nn.Module, reference: ReferenceRecorder):
        super().__init__(model)
        self._reference = reference
        self.found: DifferingOp | None = None
        self.compared = Compared()
        self._uncompared: tuple[int, Key, Shape, Shape] | None = None
        """The last op whose tensors could not all be compared with the reference's."""

    def watch(self, step: Step) -> Any:
        """See `OpRecorder.watch`; None beyond the window, and after an op differed."""
        if self.found is not None or step.index >= self._reference.window:
            return None
        self.compared.steps.add(step.index)
        return super().watch(step)

    def before(self, step: Step, args: Sequence[Any]) -> Any:
        """The input tensors themselves."""
        return self._tensors(args)

    def after(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        """Compare inputs and output with the reference's."""
        if self.found is not None:
            return
        op = self._reference.ops.get((step.index, key))
        if op is None or output is None or op.output is None:
            self._note_uncompared(step, key, op, output)
            return
        agreements = [
            _agrees(x, digest, step.place.extents)
            for x, digest in zip(inputs, op.inputs, strict=False)
            if x is not output  # written in place: its values before the op are gone
        ]
        if False in agreements:
            self._name_uncompared(step, key, op.output.shape, output)
            return
        same = _agrees(output, op.output, step.place.extents)
        if same is None:
            self._note_uncompared(step, key, op, output)
            return
        self.compared.ops += 1
        self.compared.tensors += 1 + sum(agrees is not None for agrees in agreements)
        if same:
            return
        if True not in agreements:  # this op, or an earlier one that was not compared either
            self._uncompared = (step.index, key, op.output.shape, tuple(output.shape))
            return
        self.found = DifferingOp(
            step.index,
            key,
            op.output.shape,
            tuple(output.shape),
            sum(agrees is not None for agrees in agreements),
        )

    def _note_uncompared(
        self, step: Step, key: Key, op: RecordedOp | None, output: torch.Tensor | None
    ) -> None:
        """Remember an op that could not be compared, if it may be the first that differs."""
        if op is None or output is None or op.output is None or not output.is_floating_point():
            return
        if len(op.output.shape) > 1 and tuple(output.shape) != op.output.shape:
            self._uncompared = (step.index, key, op.output.shape, tuple(output.shape))

    def _name_uncompared(self, step: Step, key: Key, alone: Shape, output: torch.Tensor) -> None:
        """An input differs but no compared result did: name the last uncompared op."""
        origin = self._uncompared or (step.index, key, alone, tuple(output.shape))
        self.found = DifferingOp(*origin, inputs_compared=0, indirect=True)


class OutputKeeper(OpRecorder):
    """Keeps the result of one op and, if `with_call` is true, the call with all its inputs."""

    def __init__(self, model: torch.nn.Module, wanted: DifferingOp, *, with_call: bool = False):
        super().__init__(model)
        self._wanted = wanted
        self._with_call = with_call
        self.call: OpCall | None = None
        self.output: torch.Tensor | None = None
        """The whole output, on the CPU."""
        self.extents: tuple[Extent, ...] = ()

    def watch(self, step: Step) -> Any:
        """See `OpRecorder.watch`; None for other steps than the op's."""
        return super().watch(step) if step.index == self._wanted.step else None

    def called(
        self, step: Step, key: Key, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Keep the call if it is the wanted op's."""
        if self._with_call and key == self._wanted.key:
            self.call = OpCall.of(op, args, kwargs, self._parameters)

    def before(self, step: Step, args: Sequence[Any]) -> Any:
        """None: the inputs are not recorded."""
        return None

    def after(self, step: Step, key: Key, inputs: Any, output: torch.Tensor | None) -> None:
        """Keep the output if it is the wanted op's."""
        if key == self._wanted.key and output is not None:
            self.output, self.extents = output.detach().cpu().clone(), step.place.extents


def _digest_of(x: torch.Tensor) -> TensorDigest | None:
    if x.numel() * x.element_size() > LARGEST_BYTES or not x.numel():
        return None
    return TensorDigest(tuple(x.shape), digest(x))


def digest(x: torch.Tensor) -> int:
    """A hash of the bits of `x` in the order of its elements; valid within this process only."""
    flat = x.detach().contiguous().cpu().reshape(-1)
    if flat.is_floating_point() or flat.is_complex() or flat.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    return hash(flat.numpy().tobytes())


def _agrees(
    x: torch.Tensor, reference: TensorDigest | None, extents: tuple[Extent, ...]
) -> bool | None:
    """True if the request's rows of `x` equal the reference's; None if its rows are not known.

    Only tensors that grow with the load are compared. Others are shared by all requests, or belong
    to one request that is not known.
    """
    if reference is None or not x.is_floating_point():
        return None
    rows = cut(x, reference.shape, extents)
    return None if rows is None else digest(rows) == reference.digest
