"""The chain from the recorded log-probabilities to the trainer's, under one kernels setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from detcheck.analysis.mismatch.measures import Floats, measure
from detcheck.analysis.mismatch.results import (
    DECODE_PREFILL,
    LAYOUT_DTYPE,
    PREFILL_KERNELS,
    PREFILL_LAYOUT,
    RECORDED_DECODE,
    WHOLE,
    MismatchRow,
    MissingLink,
)
from detcheck.engines.memory import is_out_of_memory
from detcheck.errors import DetcheckError
from detcheck.kernels.in_force import kernels_in_force
from detcheck.mismatch.passes import decoded, head_inputs, prefilled, trained
from detcheck.mismatch.rollouts import Rollout
from detcheck.mismatch.semantics import Meanings, add_meanings, logprobs, stated_temperature

Logprobs = list[Floats]
"""(sampled tokens,) float32 of each rollout."""


@dataclass(slots=True)
class Chain:
    """The log-probabilities at each end of each link; None if a pass could not be computed."""

    kernels: str
    rollouts: Sequence[Rollout]
    processed: bool
    """If true, logits are divided by each rollout's temperature."""
    meanings: Meanings = field(default_factory=Meanings)
    decoded: Logprobs | None = None
    prefilled: Logprobs | None = None
    other_kernels: Logprobs | None = None
    """One prefill under the trainer's kernels, if these are others."""
    other_kernels_tried: bool = False
    trained: dict[tuple[str, str], Logprobs] = field(default_factory=dict)
    """By the trainer's layout and dtype."""
    missing: list[MissingLink] = field(default_factory=list)
    unproven: dict[str, str] = field(default_factory=dict)
    """Kernels settings whose proof failed, and why."""

    @property
    def recorded(self) -> Logprobs:
        """As the sampler gave them."""
        return [
            np.array(rollout.logprobs, np.float32)[list(rollout.places)]
            for rollout in self.rollouts
        ]

    def compute_sampler(self, model: Any) -> None:
        """The decode steps again, and one prefill of each sequence, without gradients."""
        with torch.no_grad(), self._kernels(self.kernels):
            with self._missing(RECORDED_DECODE):
                self.decoded = self._decode(model)
            with self._missing(DECODE_PREFILL):
                self.prefilled = self._scored(prefilled(model, each) for each in self.rollouts)

    def compute_trainer(
        self, model: Any, kernels: str, layouts: Sequence[str], dtype: str, pad_token_id: int
    ) -> None:
        """Every layout, with gradients recorded, in the dtype of `model`."""
        with self._kernels(kernels):
            if kernels != self.kernels and not self.other_kernels_tried:
                self.other_kernels_tried = True
                with self._missing(PREFILL_KERNELS), torch.no_grad():
                    self.other_kernels = self._scored(
                        prefilled(model, each) for each in self.rollouts
                    )
            for layout in layouts:
                with self._missing(PREFILL_LAYOUT, layout, dtype), torch.enable_grad():
                    logits = trained(model, self.rollouts, layout, pad_token_id)
                    self.trained[layout, dtype] = self._scored(logits)

    def rows(self, sampler_dtype: str) -> Iterator[MismatchRow]:
        """A row for each link and for each whole gap that could be computed."""
        shared = [
            (RECORDED_DECODE, self.recorded, self.decoded),
            (DECODE_PREFILL, self.decoded, self.prefilled),
            (PREFILL_KERNELS, self.prefilled, self.other_kernels),
        ]
        for link, sampler, trainer in shared:
            if sampler is not None and trainer is not None:
                yield MismatchRow.of(measure(sampler, trainer), self.kernels, link)
        prefill = self.other_kernels if self.other_kernels_tried else self.prefilled
        for (layout, dtype), scored in self.trained.items():
            before = self.trained.get((layout, sampler_dtype))
            if dtype == sampler_dtype and prefill is not None:
                yield self._row(prefill, scored, PREFILL_LAYOUT, layout, dtype)
            if dtype != sampler_dtype and before is not None:
                yield self._row(before, scored, LAYOUT_DTYPE, layout, dtype)
        for (layout, dtype), scored in self.trained.items():
            yield self._row(self.recorded, scored, WHOLE, layout, dtype)

    def _row(
        self, sampler: Logprobs, trainer: Logprobs, link: str, layout: str, dtype: str
    ) -> MismatchRow:
        return MismatchRow.of(measure(sampler, trainer), self.kernels, link, layout, dtype)

    def _decode(self, model: Any) -> Logprobs:
        for rollout in self.rollouts:
            with head_inputs(model) as hidden:
                logits = decoded(model, rollout)
            add_meanings(self.meanings, rollout, logits, hidden, model, self.processed)
        return self.meanings.stated

    def _scored(self, every: Any) -> Logprobs:
        """Log-probabilities from the logits of each rollout, in order."""
        found = []
        for rollout, logits in zip(self.rollouts, every, strict=True):
            found.append(logprobs(logits, rollout, stated_temperature(rollout, self.processed)))
        return found

    @contextmanager
    def _kernels(self, kernels: str) -> Iterator[None]:
        with kernels_in_force(kernels, must_pass=False) as mode:
            yield
            # Layouts with padding are measured; whether their rows depend on it is no assumption.
            fault = None if mode is None else replace(mode.proof(), unchecked=()).fault
            if fault is not None:
                self.unproven[kernels] = fault

    @contextmanager
    def _missing(
        self, link: str, layout: str | None = None, dtype: str | None = None
    ) -> Iterator[None]:
        """Take note of a pass that could not be computed, and go on with the others."""
        try:
            yield
        except (DetcheckError, RuntimeError, TypeError, ValueError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            if is_out_of_memory(error):
                reason = "memory ran out"
            self.missing.append(
                MissingLink(
                    kernels=self.kernels,
                    link=link,
                    trainer_layout=layout,
                    trainer_dtype=dtype,
                    reason=reason,
                )
            )
