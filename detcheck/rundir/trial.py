"""One trial as the lines that it appends to the files of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detcheck.completion import Completion, precision_of
from detcheck.evidence import FORWARD_PASSES, LoadEvidence
from detcheck.rundir.files import dump_line
from detcheck.rundir.records import CompletionLine, ConditionRecord, VariantLine, token_texts


@dataclass(frozen=True, slots=True)
class ReferenceTrace:
    """Gaps of the first completion of a (prompt, kernels, seed); (tokens,), NaN if not finite."""

    tokens: Sequence[int | str]
    """Its token ids, or the text of its tokens if there are no ids."""
    gaps: npt.NDArray[np.float64]

    def noise(self, tokens: Sequence[int | str], gaps: npt.NDArray[np.float64]) -> float | None:
        """Largest change of the gap before the first divergence; None if it is at token 0."""
        shared = min(len(tokens), len(self.tokens), len(gaps), len(self.gaps))
        pairs = zip(tokens[:shared], self.tokens[:shared], strict=True)
        stop = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shared)
        change = np.abs(gaps[:stop] - self.gaps[:stop])
        change = change[np.isfinite(change)]
        return float(change.max()) if len(change) else None


@dataclass(slots=True)
class TrialLines:
    """The lines and counts that one trial adds; the writer keeps them once they are on disk."""

    condition: int
    trial: int
    record: ConditionRecord
    """A copy of the condition's record; counts what is added."""
    known: set[str]
    """Fingerprints of the prompt that are stored already; read only."""
    reference: ReferenceTrace | None
    """Trace of the (prompt, kernels, seed); None until its first completion is added."""
    greedy: bool = False
    """True if each chosen token was the best one, as it is at temperature 0."""
    completions: list[bytes] = field(default_factory=list)
    variants: list[bytes] = field(default_factory=list)
    fingerprints: set[str] = field(default_factory=set)
    """Fingerprints that this trial is the first to have."""

    def add(self, request: int, completion: Completion) -> None:
        """Add the completion of the request at position `request` of the trial."""
        line = CompletionLine(
            condition=self.condition,
            trial=self.trial,
            request=request,
            finish_reason=completion.finish_reason,
            observed_batch=completion.observed_batch,
        )
        if completion.observed_batch is not None:
            self.record.rows_max = max(self.record.rows_max, completion.observed_batch.rows_max)
            self.record.evidence_source = FORWARD_PASSES
        if completion.failed:
            line.error, line.failure = completion.error, completion.failure
            self.record.failed += 1
            if completion.failure is not None:
                self._count_failures({completion.failure: 1})
        else:
            line.fingerprint = completion.fingerprint
            self._measure_noise(line, completion)
            self.record.completed += 1
            line.unseen_tokens = completion.unseen_tokens
            self.record.unseen_tokens += completion.unseen_tokens
            self._add_variant(line.fingerprint, completion)
        self.completions.append(dump_line(line))

    def add_load(
        self, load: LoadEvidence | None, filler_failures: Mapping[str, int], retries: int
    ) -> None:
        """Add the evidence of the trial as a whole; call it before the trial is counted."""
        record = self.record
        self._count_failures(filler_failures)
        record.retries += retries
        if load is None:
            return
        record.rows_max = max(record.rows_max, load.rows_max)
        record.evidence_source = load.source
        if load.rows_mean is not None:
            before = 0.0 if record.rows_mean is None else record.rows_mean
            record.rows_mean = before + (load.rows_mean - before) / (record.trials + 1)
        for name in ("preemptions", "prefix_cache_hits"):
            number = getattr(load, name)
            if number is not None:
                setattr(record, name, (getattr(record, name) or 0) + number)

    def _count_failures(self, failures: Mapping[str, int]) -> None:
        for kind, number in failures.items():
            self.record.failures[kind] = self.record.failures.get(kind, 0) + number

    def _add_variant(self, fingerprint: str, completion: Completion) -> None:
        """Store the answer itself if it is the first with its fingerprint."""
        if fingerprint not in self.known and fingerprint not in self.fingerprints:
            self.fingerprints.add(fingerprint)
            self.variants.append(_variant_line(self.record.prompt_index, fingerprint, completion))

    def _measure_noise(self, line: CompletionLine, completion: Completion) -> None:
        """Digest and noise of a completion; of a group's first also the gaps to compare with."""
        if completion.top_two is None:
            return
        tokens = _tokens(completion)
        gaps = np.asarray(completion.top_two.gaps, dtype=np.float64)
        gaps[~np.isfinite(gaps)] = np.nan
        line.logprob_digest = completion.logprob_digest
        if self.greedy and self.record.completed == 0:
            line.top_logprobs = tuple(map(_short, completion.top_two.logprobs))
        known = self.record.logprob_precision
        if known is None or known.rounding:  # fine numbers stay fine
            found = precision_of(completion.top_two)
            self.record.logprob_precision = found if known is None else known.joined(found)
        if self.reference is None:
            self.reference = ReferenceTrace(tokens, gaps)
            line.reference_gaps = tuple(gaps.tolist())
        line.noise = self.reference.noise(tokens, gaps)


def _short(logprob: float) -> float | None:
    """A log-probability to seven digits, of which float32 holds no more; None if not finite."""
    return float(f"{logprob:.7g}") if np.isfinite(logprob) else None


def _tokens(completion: Completion) -> tuple[int | str, ...]:
    if completion.token_ids is not None:
        return completion.token_ids
    return token_texts(completion.text, completion.token_ends or ())


def _variant_line(prompt_index: int, fingerprint: str, completion: Completion) -> bytes:
    top_two = completion.top_two
    return dump_line(
        VariantLine(
            prompt_index=prompt_index,
            fingerprint=fingerprint,
            text=completion.text,
            token_ids=completion.token_ids,
            token_ends=completion.token_ends,
            gaps=None if top_two is None else top_two.gaps,
            runner_up_token_ids=None if top_two is None else top_two.runner_up_token_ids,
            runner_up_texts=None if top_two is None else top_two.runner_up_texts,
        )
    )
