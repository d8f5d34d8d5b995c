"""One trial as lines to append: what each completion says, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from detcheck.completion import FORWARD_PASSES, Completion, LoadEvidence
from detcheck.rundir.files import dump_line
from detcheck.rundir.records import ConditionRecord, token_texts

REFERENCE_GAPS = "reference_gaps"
"""Member of the first completion of each (prompt, kernels): what noise is measured against."""


@dataclass(frozen=True, slots=True)
class ReferenceTrace:
    """Gaps of the first completion of a (prompt, kernels); (tokens,), NaN where not finite."""

    tokens: Sequence[int | str]
    """Its token ids, or the text of its tokens where there are no ids."""
    gaps: npt.NDArray[np.float64]

    def noise(self, tokens: Sequence[int | str], gaps: npt.NDArray[np.float64]) -> float | None:
        """Largest change of the gap before the two part; None where there is nothing before."""
        shared = min(len(tokens), len(self.tokens), len(gaps), len(self.gaps))
        pairs = zip(tokens[:shared], self.tokens[:shared], strict=True)
        stop = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shared)
        change = np.abs(gaps[:stop] - self.gaps[:stop])
        change = change[np.isfinite(change)]
        return float(change.max()) if len(change) else None


@dataclass(slots=True)
class TrialLines:
    """What one trial adds; the writer takes it up once it is on disk."""

    condition: int
    trial: int
    record: ConditionRecord
    """A copy of the condition's record; counts what is added."""
    known: set[str]
    """Fingerprints of the prompt that are stored already; read only."""
    reference: ReferenceTrace | None
    """Trace of the (prompt, kernels); None until its first completion is added."""
    completions: list[bytes] = field(default_factory=list)
    variants: list[bytes] = field(default_factory=list)
    fingerprints: set[str] = field(default_factory=set)
    """Those seen here for the first time."""

    def add(self, request: int, completion: Completion) -> None:
        """Add the completion of the request at position `request` of the trial."""
        fingerprint = None if completion.failed else completion.fingerprint
        line: dict[str, Any] = {
            "condition": self.condition,
            "trial": self.trial,
            "request": request,
            "fingerprint": fingerprint,
            "finish_reason": completion.finish_reason,
        }
        if completion.observed_batch is not None:
            line["observed_batch"] = asdict(completion.observed_batch)
            self.record.rows_max = max(self.record.rows_max, completion.observed_batch.rows_max)
            self.record.evidence_source = FORWARD_PASSES
        if fingerprint is None:
            line["error"] = completion.error
            self.record.failed += 1
            if completion.failure is not None:
                line["failure"] = completion.failure
                self._count_failures({completion.failure: 1})
        else:
            line |= self._logprob_members(completion)
            self.record.completed += 1
            self._add_variant(fingerprint, completion)
        self.completions.append(dump_line(line))

    def add_load(
        self, load: LoadEvidence | None, filler_failures: Mapping[str, int], retries: int
    ) -> None:
        """Add what was seen of the trial as a whole; before the trial is counted."""
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
        """Store the answer itself, where it is seen for the first time."""
        if fingerprint not in self.known and fingerprint not in self.fingerprints:
            self.fingerprints.add(fingerprint)
            self.variants.append(_variant_line(self.record.prompt_index, fingerprint, completion))

    def _logprob_members(self, completion: Completion) -> dict[str, Any]:
        """Digest and noise of a completion; and the trace itself of a group's first."""
        if completion.top_two is None:
            return {}
        tokens = _tokens(completion)
        gaps = np.asarray(completion.top_two.gaps, dtype=np.float64)
        gaps[~np.isfinite(gaps)] = np.nan
        members: dict[str, Any] = {"logprob_digest": completion.logprob_digest}
        if self.reference is None:
            self.reference = ReferenceTrace(tokens, gaps)
            members[REFERENCE_GAPS] = gaps.tolist()
        noise = self.reference.noise(tokens, gaps)
        if noise is not None:
            members["noise"] = noise
        return members


def _tokens(completion: Completion) -> tuple[int | str, ...]:
    if completion.token_ids is not None:
        return completion.token_ids
    return token_texts(completion.text, completion.token_ends or ())


def _variant_line(prompt_index: int, fingerprint: str, completion: Completion) -> bytes:
    line: dict[str, Any] = {
        "prompt_index": prompt_index,
        "fingerprint": fingerprint,
        "text": completion.text,
    }
    if completion.token_ids is not None:
        line["token_ids"] = completion.token_ids
    if completion.token_ends is not None:
        line["token_ends"] = completion.token_ends
    if completion.top_two is not None:
        line["gaps"] = completion.top_two.gaps
        if completion.top_two.runner_up_token_ids is not None:
            line["runner_up_token_ids"] = completion.top_two.runner_up_token_ids
        if completion.top_two.runner_up_texts is not None:
            line["runner_up_texts"] = completion.top_two.runner_up_texts
    return dump_line(line)
