"""An engine that gives whatever a test says, and the answers to give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from detcheck.analysis.results import VariantCount
from detcheck.completion import Completion, TopTwo
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.evidence import KernelsProof, ObservedBatch
from detcheck.rundir import StoredVariant
from detcheck.traffic import Trial

Answer = Callable[[Trial, int], Completion]


class AnsweringEngine:
    """Answers the probe at a position of a trial by a function, `seconds` a trial."""

    def __init__(self, answer: Answer, seconds: Callable[[Trial], float] = lambda trial: 1.0):
        self._answer = answer
        self._seconds = seconds

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        completions = tuple(
            (position, self._answer(trial, position))
            for position, request in enumerate(trial.requests)
            if request.is_probe
        )
        tokens = sum(completion.num_tokens for _, completion in completions)
        return TrialResult(completions, tokens, self._seconds(trial))

    def proof(self, kernels: str) -> KernelsProof:
        return KernelsProof(kernels, {})

    def close(self) -> None:
        pass


def answer(
    token_ids: Sequence[int],
    *,
    gaps: Sequence[float] | None = None,
    runners_up: Sequence[int] | None = None,
    rows: int | None = None,
) -> Completion:
    """A completion whose token t reads `t ` ; `gaps` None: no log-probabilities."""
    pieces = [f"{token_id} " for token_id in token_ids]
    top_two = None
    if gaps is not None:
        runners_up = [token + 1 for token in token_ids] if runners_up is None else runners_up
        top_two = TopTwo(tuple(runners_up), tuple(gaps), tuple(-gap for gap in gaps))
    return Completion(
        text="".join(pieces),
        finish_reason="length",
        token_ids=tuple(token_ids),
        token_ends=tuple(np.cumsum([len(piece) for piece in pieces]).tolist()),
        top_two=top_two,
        observed_batch=None if rows is None else ObservedBatch(rows, rows, float(rows), rows, 1),
    )


def stored(
    token_ids: Sequence[int],
    *,
    gaps: Sequence[float] | None = None,
    runners_up: Sequence[int] | None = None,
) -> StoredVariant:
    """The same as it is loaded."""
    pieces = [f"{token_id} " for token_id in token_ids]
    return StoredVariant(
        prompt_index=0,
        fingerprint=f"sha256:{token_ids}",
        text="".join(pieces),
        token_ids=np.asarray(token_ids, dtype=np.int32),
        token_ends=np.cumsum([len(piece) for piece in pieces], dtype=np.int32),
        runner_up_token_ids=None if runners_up is None else np.asarray(runners_up, dtype=np.int32),
        gaps=None if gaps is None else np.asarray(gaps, dtype=np.float32),
    )


def stored_text(text: str) -> StoredVariant:
    """An answer from a server that gives no token ids, as it is loaded."""
    return StoredVariant(0, f"sha256-text:{text}", text, None, None, None, None)


def text_variant(
    tokens: Sequence[str], gaps: Sequence[float], runners_up: Sequence[str]
) -> StoredVariant:
    """An answer from a server that gives log-probabilities by text and no token ids."""
    text = "".join(tokens)
    return StoredVariant(
        prompt_index=0,
        fingerprint=f"sha256-text:{text}",
        text=text,
        token_ids=None,
        token_ends=np.cumsum([len(token) for token in tokens], dtype=np.int32),
        runner_up_token_ids=None,
        gaps=np.asarray(gaps, dtype=np.float32),
        runner_up_texts=tuple(runners_up),
    )


def counted(
    variant: StoredVariant,
    count: int,
    *,
    rank: int = 1,
    is_reference: bool = False,
    first_divergence: int | None = None,
) -> VariantCount:
    """A variant with its number of completions."""
    return VariantCount(rank, variant, count, 0.5, is_reference, first_divergence, (1, 4))
