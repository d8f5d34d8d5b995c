"""Which ops of a model the batch-invariant kernels do not cover, found by a short forward pass.

`op_rules.py` says which calls are covered.

The pass is a prefill without padding, one with it, and a decoding step after each. A model whose
ops are all covered may still depend on its padding, or on the other rows, by what it computes: so
the bits of the row are compared as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from detcheck.errors import ModelError, UsageError
from detcheck.kernels.first_passes import FIRST_PASSES
from detcheck.kernels.length_limits import longest_run, why_too_long
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.one_length import STEPWISE
from detcheck.kernels.op_watch import CoveredOp, OpWatch, Uncovered
from detcheck.kernels.settings import BATCH_INVARIANT, FAMILIES, FULLY_INVARIANT, OP_FAMILIES
from detcheck.kernels.short_runs import (
    alone,
    beside_copies,
    beside_equal,
    beside_longer,
    chunks_agree,
    decoding_agrees,
    drops_mask,
    keeps_state,
    long_padding_agrees,
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """All ops of a short run of a model, in the order in which they first ran."""

    covered: tuple[CoveredOp, ...]
    uncovered: tuple[Uncovered, ...]
    padding_matters: bool
    """True if a row gives other bits with padding than without, under the batch-invariant mode."""
    batch_matters: bool = False
    """True if a row gave other bits beside rows of its own length than alone."""

    @property
    def one_length(self) -> bool:
        """True if the model is held, but only in batches of requests of one length."""
        return self.padding_matters and not self.batch_matters and not self.uncovered

    @property
    def families(self) -> frozenset[str]:
        """The op families whose kernels ran: a pure state-space model has no attention."""
        used = {one.by for one in self.covered}
        return frozenset(family for family in OP_FAMILIES if f"the {family} kernels" in used)


def require_coverage(
    model: torch.nn.Module, name: str, longest: int = 0, *, one_length: bool = False
) -> Coverage:
    """Refuse a model that the whole batch-invariant mode cannot make invariant.

    Runs a few forward passes of a few tokens. `longest` is the number of tokens of the longest
    request. With `one_length` a model is taken that is held only without padding: the caller then
    keeps padding from it (see `refuse_padding`). Returns the findings of the passes.

    Raises UsageError that names the first op that is not covered.
    """
    sentence = why_too_long(model, name, longest)
    if sentence is None:
        found = coverage(model)
        sentence = refusal(found, name)
        if sentence is None and (one_length or not found.one_length):
            return found
    raise UsageError(sentence or why_padding(name))


def require_level(model: torch.nn.Module, name: str) -> None:
    """Raise UsageError if a covered model is not fully invariant in a short run."""
    if level_held(model) != FULLY_INVARIANT:
        raise UsageError(
            f"{name} gives other bits when it decodes, or computes a prompt in chunks, than in one "
            'forward pass, so it is not fully invariant: use `kernels="batch-invariant"`.'
        )


def why_padding(name: str) -> str:
    """The problem and its remedy for a model that is held only without padding."""
    return (
        f"{name} computes with its padding, so it is held for requests of one length only: use "
        '`engine="static"` with `traffic="alone"`, or `kernels="stock"`.'
    )


def refusal(found: Coverage, name: str) -> str | None:
    """The sentence for a model's coverage; None if it is held, be it for one length only."""
    if found.uncovered:
        first, more = found.uncovered[0], len(found.uncovered) - 1
        others = f" and {more} more" if more else ""
        return (
            f"{name} runs {first.op} (in {first.module or 'the model itself'}){others}, which the "
            'batch-invariant kernels do not cover: use `kernels="stock"`, or name the families to '
            f'cover, such as `kernels="batch-invariant:{OP_FAMILIES[0]}+{OP_FAMILIES[1]}"`.'
        )
    if found.batch_matters:
        return (
            f"{name} computes with the other rows of its batch: a row gives other bits beside them "
            'than alone, whatever the kernels. Use `kernels="stock"`.'
        )
    return None


def uncovered(model: torch.nn.Module) -> tuple[Uncovered, ...]:
    """Every op of a short run of a causal model that is not covered, once each."""
    return coverage(model).uncovered


def coverage(model: torch.nn.Module) -> Coverage:
    """Run a causal model on a few tokens under the batch-invariant mode and watch its ops.

    Raises UsageError if attention meets a feature that it does not cover, or if the run fails;
    ModelError if the model fails without our kernels as well.
    """
    try:
        return _watched(model)
    except UsageError:
        raise
    except Exception as error:  # of the model's own code, which may be of any kind
        _require_to_run(model)
        raise UsageError(
            f"A short run of this model failed, so its ops are not known ({_words(error)}): use "
            '`kernels="stock"`.'
        ) from error


def _require_to_run(model: torch.nn.Module) -> None:
    """Raise ModelError if a short run fails with the kernels that are in force now."""
    try:
        with torch.no_grad():
            alone(model)
    except Exception as error:  # of the model's own code
        raise ModelError(
            f"This model fails in its own forward pass, with stock kernels too ({_words(error)}): "
            "correct the model or its config.json."
        ) from error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:150]


def _watched(model: torch.nn.Module) -> Coverage:
    """The findings of the passes. Raises any exception of the model's own code."""
    with batch_invariant(), torch.no_grad():
        watch = OpWatch(model)
        passes = FIRST_PASSES.remember(model, watch.outside)
        try:
            alone(model)  # tables that are made once are made here
            with watch:
                row = alone(model)
                padded = beside_longer(model)
            batch_matters = not torch.equal(row, beside_equal(model))
            scans = _scans_chunks(model)  # each row takes a whole chunk: many rows, much memory
            batch_matters |= not scans and not beside_copies(model)
            padding_matters = (
                drops_mask(model)
                or _hides_padding(model)
                or scans
                or not torch.equal(row, padded)
                or not long_padding_agrees(model, longest_run(model))
            )
            passes.padding_matters = padding_matters
        except UsageError:
            raise
        except Exception:
            if watch.uncovered:  # the ops up to there are reason enough
                return Coverage(
                    tuple(watch.covered.values()), tuple(watch.uncovered.values()), False
                )
            raise
    return Coverage(
        tuple(watch.covered.values()),
        tuple(watch.uncovered.values()),
        padding_matters,
        batch_matters,
    )


UNSEEN_PADDING = frozenset({"cpmant"})
"""Architectures that compute with their padding in a way that the short runs do not show.

CPM-Ant counts it, in steps, in the distance to its learnt prompt."""


def _hides_padding(model: Any) -> bool:
    return model.config.model_type in UNSEEN_PADDING


def _scans_chunks(model: Any) -> bool:
    """True if padding may move the borders of the chunks in which a recurrence is computed.

    The short runs here are shorter than a chunk and might not show it.
    """
    return model.config.get_text_config().model_type not in STEPWISE and keeps_state(model)


def level_held(model: torch.nn.Module) -> str:
    """The highest level that a covered model held in a short run.

    `fully-invariant` if decoding and chunks of a prompt give the bits of one forward pass; else
    `batch-invariant`, as for scans in chunks, which decode by another formula.
    """
    with batch_invariant(FAMILIES), torch.no_grad():
        held = not _scans_chunks(model) and decoding_agrees(model) and chunks_agree(model)
    return FULLY_INVARIANT if held else BATCH_INVARIANT
