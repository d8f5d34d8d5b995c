"""Finds the op on which decoding and prefilling diverge: the sampler's and the trainer's pass.

A prompt is decoded token by token with a cache. At each step the same tokens are computed again in
one pass without a cache. The trace names the first op whose rows for the last token differ while
its compared inputs agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from detcheck.engines.passes import Extent, RequestPlace
from detcheck.errors import UsageError
from detcheck.kernels.in_force import kernels_in_force
from detcheck.models import LoadedModel
from detcheck.probes.growth import Kept, first_op, growth
from detcheck.probes.recorder import ComparingRecorder, DifferingOp, ReferenceRecorder
from detcheck.probes.replay import Step, StepObserver
from detcheck.probes.trace_results import FirstOp, LayerGrowth


@dataclass(frozen=True, slots=True)
class DecodeTrace:
    """The first op that differs between decoding and prefilling, if any."""

    kernels: str
    first: FirstOp | None
    """Its reference shape is that of the decode step, its shape that of the prefill."""
    layers: tuple[LayerGrowth, ...]
    """Of the last token, at the step of the first op."""
    max_logit_change: float
    ops_compared: int
    tensors_compared: int
    steps_compared: int


def trace_decoding(
    loaded: LoadedModel, prompt_ids: Sequence[int], kernels: str, num_tokens: int
) -> DecodeTrace:
    """Compare up to `num_tokens` decode steps after `prompt_ids` with prefills, op by op.

    The best token is taken at each step. Raises UsageError if the model keeps no cache, and
    MeasurementError if the kernels fail their self-check.
    """
    passes = _Passes(loaded, tuple(prompt_ids))
    reference = ReferenceRecorder(loaded.model, num_tokens)
    comparison = ComparingRecorder(loaded.model, reference)
    change = 0.0
    with kernels_in_force(kernels), torch.inference_mode():
        for step, logits in passes.decode(num_tokens, reference):
            whole = passes.prefill(step, comparison)
            change = max(change, float((whole - logits).abs().max()))
            reference.ops.clear()
            if comparison.found is not None:
                break
        first, layers = _measure(passes, comparison.found)
    compared = comparison.compared
    return DecodeTrace(
        kernels, first, layers, change, compared.ops, compared.tensors, len(compared.steps)
    )


def _measure(
    passes: _Passes, found: DifferingOp | None
) -> tuple[FirstOp | None, tuple[LayerGrowth, ...]]:
    """Both passes again, keeping the result of the op found and of each layer."""
    if found is None:
        return None, ()
    kept = [Kept(passes.model, found, found.step) for _ in range(2)]
    for step, _ in passes.decode(found.step + 1, kept[0]):
        if step == found.step:
            passes.prefill(step, kept[1])
    layers = tuple(growth(name, row, kept[1].layers[name]) for name, row in kept[0].layers.items())
    return first_op(found, *kept), layers


class _Passes:
    """The forward passes of one prompt; tokens are chosen as decoding goes on."""

    def __init__(self, loaded: LoadedModel, prompt_ids: tuple[int, ...]):
        self.model: Any = loaded.model
        self._prompt_ids = prompt_ids
        self._ids: list[int] = []

    def decode(self, num_tokens: int, observer: StepObserver) -> Iterator[tuple[int, torch.Tensor]]:
        """(step, logits (vocabulary,)) of each decode step, as the observer watches it."""
        self._ids = list(self._prompt_ids)
        out = self.model(input_ids=self._tensor(self._ids), use_cache=True)
        for index in range(num_tokens):
            cache = getattr(out, "past_key_values", None)
            if cache is None:
                raise UsageError("This model keeps no cache, so it does not decode step by step.")
            self._ids.append(int(out.logits[0, -1].argmax()))
            with observer.watch(_step(index, 1)) or nullcontext():
                out = self.model(
                    input_ids=self._tensor(self._ids[-1:]), past_key_values=cache, use_cache=True
                )
            yield index, out.logits[0, -1].float()

    def prefill(self, index: int, observer: StepObserver) -> torch.Tensor:
        """Logits (vocabulary,) of the last token so far, from one pass over all tokens."""
        with observer.watch(_step(index, len(self._ids))) or nullcontext():
            out = self.model(input_ids=self._tensor(self._ids), use_cache=False)
        last: torch.Tensor = out.logits[0, -1].float()
        return last

    def _tensor(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self.model.device)


def _step(index: int, num_tokens: int) -> Step:
    """A pass of `num_tokens` tokens, of which the last one is compared."""
    last = num_tokens - 1
    return Step(index, RequestPlace((Extent(1, num_tokens, last),), 0, last, 0))
