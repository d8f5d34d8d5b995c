"""Measures the values of two replays: the op that differs, and each layer at the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from detcheck.probes.bits import ulps
from detcheck.probes.calls import CallPair
from detcheck.probes.cutting import cut
from detcheck.probes.recorder import DifferingOp, OutputKeeper
from detcheck.probes.replay import Step
from detcheck.probes.trace_results import FirstOp, LayerGrowth


class Kept:
    """A `StepObserver` that keeps the differing op's result, and each layer's at the last step."""

    def __init__(
        self, model: Any, found: DifferingOp | None, last_step: int, *, with_call: bool = False
    ):
        self._model = model
        self._last_step = last_step
        self.keeper = None
        if found is not None:
            self.keeper = OutputKeeper(model, found, with_call=with_call)
        self.layers: dict[str, torch.Tensor] = {}
        """The request's last row of each layer's output, (hidden,)."""

    @contextmanager
    def watch(self, step: Step) -> Iterator[None]:
        """See `StepObserver`."""
        hooks = self._layer_hooks(step) if step.index == self._last_step else []
        inner = self.keeper.watch(step) if self.keeper is not None else None
        try:
            if inner is None:
                yield
            else:
                with inner:
                    yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layer_hooks(self, step: Step) -> list[Any]:
        return [
            module.register_forward_hook(self._keep(name, step))
            for name, module in layer_modules(self._model)
        ]

    def _keep(self, name: str, step: Step) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self.layers[name] = _last_row(hidden, step).cpu().clone()

        return keep


def _last_row(hidden: torch.Tensor, step: Step) -> torch.Tensor:
    """The request's last token of (batch, tokens, hidden)."""
    return hidden[step.place.row, step.place.last_token]


def layer_modules(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """(name, layer) of the model's longest list of modules, in order; empty if it has no list."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    if not lists:
        return []
    name, layers = max(lists, key=lambda pair: len(pair[1]))
    return [(f"{name}.{index}", layer) for index, layer in enumerate(layers)]


def first_op(found: DifferingOp, alone: Kept, batch: Kept) -> FirstOp:
    """The differing op, with the number of the request's rows that differ and the largest ULPs."""
    module, op, _ = found.key
    rows = rows_differ = max_ulp = 0
    whole, part = _both(alone.keeper, batch.keeper)
    if whole is not None and part is not None:
        width = whole.shape[-1]
        distances = ulps(whole.reshape(-1, width), part.reshape(-1, width)).amax(-1)
        rows, rows_differ = len(distances), int(distances.count_nonzero())
        max_ulp = int(distances.max())
    return FirstOp(
        op,
        module,
        found.step,
        found.reference_shape,
        found.shape,
        rows,
        rows_differ,
        max_ulp,
        found.inputs_compared,
        found.indirect,
    )


def call_pair(alone: Kept, batch: Kept) -> CallPair | None:
    """The calls of the differing op, if both were kept."""
    one, other = alone.keeper, batch.keeper
    if one is None or one.call is None or one.output is None:
        return None
    if other is None or other.call is None or other.output is None:
        return None
    extents = other.extents
    return CallPair(
        one.call, other.call, lambda x, shape: cut(x, shape, extents), one.output, other.output
    )


def _both(
    alone: OutputKeeper | None, batch: OutputKeeper | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The op's result alone, and the request's part of it in the batch; None if not kept."""
    if alone is None or batch is None or alone.output is None or batch.output is None:
        return None, None
    return alone.output, cut(batch.output, tuple(alone.output.shape), batch.extents)


def growth(name: str, alone: torch.Tensor, batch: torch.Tensor) -> LayerGrowth:
    """How far a layer's result in the batch, (hidden,), is from its result alone."""
    distances = ulps(alone, batch)
    norm = float(alone.float().norm())
    change = float((alone.float() - batch.float()).norm())
    return LayerGrowth(
        name,
        distances.numel(),
        int(distances.count_nonzero()),
        int(distances.max()),
        change / norm if norm else 0.0,
    )
