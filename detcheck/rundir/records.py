"""The records of a run directory's files, and a run as it is loaded from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from detcheck.evidence import (
    EndpointCheck,
    KernelsProof,
    ModelIdentity,
    ObservedBatch,
    Precision,
)
from detcheck.experiment import Experiment
from detcheck.rundir.files import SealRecord
from detcheck.targets.base import Target, Traits

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
RUN_FILE = "run.json"
COMPLETIONS_FILE = "completions.jsonl"
VARIANTS_FILE = "variants.jsonl"

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
ENOUGH: Literal["enough"] = "enough"
"""Status of a condition that a budget cut short, with the trials that a verdict needs at least."""
Status = Literal["pending", "running", "done", "failed", "enough"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


class ConditionRecord(msgspec.Struct, forbid_unknown_fields=True):
    """The outcome of one condition; kept in `run.json`."""

    condition_id: str
    """Name of the condition, such as `p0/stock/b4`."""
    prompt_index: Count
    """0-based index into the experiment's prompts."""
    kernels: str
    """Kernels setting."""
    batch_size: int
    """Requests in flight together, as asked for."""
    asked: int
    """Completions asked for."""
    status: Status = "pending"
    """How far it was measured."""
    trials: Count = 0
    """Trials that are sealed."""
    completed: Count = 0
    """Completions that came back."""
    failed: Count = 0
    """Requests that came back as errors."""
    generated_tokens: Count = 0
    """Tokens generated, fillers included."""
    elapsed_s: float = 0.0
    """Wall time of its trials, in seconds."""
    rows_max: Count = 0
    """Most requests that were observed to share a forward pass; 0 if batches were not observed."""
    error: str | None = None
    """Why the condition failed; None unless `status` is `failed`."""
    placement: str = ""
    """Where it was computed, such as `endpoint 2`; empty if the grid has only one place."""
    seed: int = 0
    """Seed of the wanted sample."""
    choice: Count = 0
    """0-based number of the choice, if each request asks for several."""
    evidence_source: str = ""
    """How batches were observed: a source of `LoadEvidence`; empty if they were not."""
    rows_mean: float | None = None
    """Mean requests a forward pass over its trials; None if only requests tell, or nothing does."""
    preemptions: int | None = None
    """Requests that the server put off; None if it does not count them."""
    prefix_cache_hits: int | None = None
    """Prompt tokens from the server's prefix cache; None if it does not count them."""
    failures: dict[str, Count] = {}
    """Failed requests by kind, fillers included; empty if the engine tells no kinds."""
    retries: Count = 0
    """Requests that were sent again because nothing had been generated."""
    unseen_tokens: Count = 0
    """Tokens that the server counted and did not show, over all completions, at the least."""
    logprob_precision: Precision | None = None
    """How finely its log-probabilities are written; None if it has none."""

    @property
    def due(self) -> int:
        """Completions that are missed if they are not there: fewer than asked after a budget."""
        return self.completed + self.failed if self.status == ENOUGH else self.asked

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens a second, fillers included; None before anything was timed."""
        return self.generated_tokens / self.elapsed_s if self.elapsed_s > 0 else None


class RunDocument(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`run.json`."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    detcheck_version: str
    """Version of detcheck that measured."""
    run_id: str
    """UTC time and six random hex digits."""
    created: str
    """UTC, ISO 8601."""
    finished: str | None = None
    """UTC, ISO 8601; None if the run was interrupted or is still going on."""
    budget_s: float | None = None
    """Seconds that the run was given when it was last started; None if there was no limit."""
    experiment: Experiment
    """The experiment, with every field."""
    target: dict[str, Any]
    """Who was asked: `engine`, and every field of its target."""
    traits: Traits
    """The target's declared properties."""
    model: ModelIdentity = ModelIdentity()
    """Which model answered."""
    environment: dict[str, Any]
    """Machine, libraries and settings that change numerics, as printed by `detcheck env`."""
    endpoint_checks: tuple[EndpointCheck, ...] = ()
    """The checks of the servers."""
    proofs: dict[str, KernelsProof] = {}
    """By kernels setting."""
    summary: tuple[dict[str, Any], ...] = ()
    """One row for each prompt and kernels setting, as `detcheck run --json` prints them."""
    conditions: tuple[ConditionRecord, ...] = ()
    """The outcome of each condition."""
    files: dict[str, SealRecord] = {}
    """Seals of the other files, by name."""
    seal: str | msgspec.UnsetType = msgspec.UNSET
    """Hash of all bytes before it; written by `files.dump_sealed`."""


class CompletionLine(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A line of `completions.jsonl`."""

    condition: Count
    """Index into the conditions of `run.json`."""
    trial: Count
    """0-based number of the trial within its condition."""
    request: Count
    """Position of the request within its trial."""
    finish_reason: str
    """Why it ended: `stop`, `length`, `error`, or a server's own word."""
    fingerprint: str | None = None
    """None if the request failed."""
    observed_batch: ObservedBatch | None = None
    """The batches that it was computed in; null if its trial attests them."""
    logprob_digest: str | None = None
    """Hash of all bits of its log-probabilities; null if it has none."""
    noise: float | None = None
    """See `CompletionTable.noise`."""
    reference_gaps: tuple[float | None, ...] | None = None
    """Gaps of the first completion of each (prompt, kernels, seed), to measure noise against."""
    top_logprobs: tuple[float | None, ...] | None = None
    """Log-probability of the best token at each position, to seven digits. Only at temperature 0,
    of the first completion of each condition."""
    error: str | None = None
    """Why the request failed; null if it did not."""
    failure: str | None = None
    """Kind of the failure, if the engine tells kinds."""
    unseen_tokens: Count = 0
    """Tokens that the server counted and did not show, at the least."""


class VariantLine(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A line of `variants.jsonl`; the arrays have one entry a token."""

    prompt_index: Count
    """0-based index into the experiment's prompts."""
    fingerprint: str
    """Tagged hash of the token ids, or of the text."""
    text: str
    """The whole text."""
    token_ids: tuple[Int32, ...] | None = None
    """The tokens; null if a server gives none."""
    token_ends: tuple[Int32, ...] | None = None
    """Length of `text`, in characters, after each token."""
    runner_up_token_ids: tuple[Int32, ...] | None = None
    """The second-best token at each position."""
    gaps: tuple[float | None, ...] | None = None
    """Best minus second-best logit at each position, of the completion that was seen first."""
    runner_up_texts: tuple[str, ...] | None = None
    """Second-best tokens, if a server gave their text instead of ids."""


def token_texts(text: str, token_ends: Sequence[int]) -> tuple[str, ...]:
    """`text` cut where its tokens end."""
    return tuple(text[start:end] for start, end in pairwise((0, *token_ends)))


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """One distinct answer to one prompt. Arrays are (tokens,)."""

    prompt_index: int
    fingerprint: str
    text: str
    token_ids: Int32Array | None
    token_ends: Int32Array | None
    """Length of `text` after each token."""
    runner_up_token_ids: Int32Array | None
    gaps: Float32Array | None
    """Best minus second-best logit at each position, of the completion that was seen first."""
    runner_up_texts: tuple[str, ...] | None = None
    """Second-best tokens, if a server gave their text instead of ids; (tokens,)."""

    def __len__(self) -> int:
        return len(self.text) if self.token_ids is None else len(self.token_ids)

    def token_keys(self) -> tuple[int | str, ...]:
        """Its token ids, else the text of each token; empty if it has no tokens."""
        if self.token_ids is not None:
            return tuple(self.token_ids.tolist())
        return token_texts(self.text, () if self.token_ends is None else self.token_ends.tolist())

    def piece(self, start: int, stop: int) -> str:
        """Text of units `start` up to `stop`: tokens, or characters if there are no tokens."""
        if self.token_ids is None:
            return self.text[start:stop]
        if self.token_ends is None or stop <= start or start >= len(self.token_ends):
            return ""
        begin = int(self.token_ends[start - 1]) if start > 0 else 0
        return self.text[begin : int(self.token_ends[min(stop, len(self.token_ends)) - 1])]


@dataclass(frozen=True, slots=True)
class CompletionTable:
    """All completions of a run as columns; row i of each belongs to the i-th recorded request."""

    condition: Int32Array
    """Index into `Run.conditions`."""
    trial: Int32Array
    request: Int32Array
    """Position of the request within its trial."""
    variant: Int32Array
    """Index into `Run.variants`; -1 if the request failed."""
    rows_max: Int32Array
    """Most requests that shared one of its forward passes; 0 if batches were not observed."""
    rows_mean: Float32Array
    query_tokens_max: Int32Array
    noise: Float32Array
    """Largest change of the gap between the two best logits, against the reference, over the
    positions before the first divergence; NaN if it was not measured."""
    digest: Int32Array
    """Code of the log-probability digest: equal codes are bitwise equal; -1 if there is none."""
    top_logprobs: Mapping[int, Float32Array] = field(default_factory=dict)
    """By row: log-probability of the best token at each position, NaN if it is not known. Only at
    temperature 0, of the first completion of each condition."""

    def __len__(self) -> int:
        return len(self.condition)


@dataclass(frozen=True, slots=True)
class Run:
    """A run as loaded and verified."""

    path: Path
    run_id: str
    detcheck_version: str
    experiment: Experiment
    target: Target
    traits: Traits
    """The target's declared properties, as they were when it was measured."""
    environment: Mapping[str, Any]
    conditions: tuple[ConditionRecord, ...]
    proofs: Mapping[str, KernelsProof]
    """By kernels setting."""
    variants: tuple[StoredVariant, ...]
    completions: CompletionTable
    created: str
    finished: str | None
    """UTC, ISO 8601; None if the run was interrupted or is still going on."""
    model: ModelIdentity = field(default_factory=ModelIdentity)
    summary: tuple[Mapping[str, Any], ...] = ()
    endpoint_checks: tuple[EndpointCheck, ...] = ()
    budget_s: float | None = None
    """Seconds that the run was given when it was last started; None if there was no limit."""

    @property
    def by_choice(self) -> bool:
        """True if the wanted samples are the choices of a request, and not its seeds.

        At temperature 0 all choices are one sample, and must be equal.
        """
        return self.traits.choices > 1 and self.experiment.temperature > 0

    @property
    def samples(self) -> tuple[int, ...]:
        """The wanted samples: the seeds, or the numbers of the choices if `by_choice`."""
        return tuple(range(self.traits.choices)) if self.by_choice else self.experiment.seeds

    def sample_of(self, record: ConditionRecord) -> int:
        """The wanted sample of a condition; one of `samples`."""
        return record.choice if self.by_choice else record.seed

    @property
    def complete(self) -> bool:
        """True if every condition was measured to its end, or as far as its budget gave enough."""
        return all(record.status in ("done", ENOUGH) for record in self.conditions)

    @property
    def can_go_on(self) -> bool:
        """True if a resume would measure more: conditions were cut short, not failed."""
        return any(record.status not in ("done", "failed") for record in self.conditions)

    def setting(self, name: str) -> Any:
        """A field of the experiment or of the target; None if neither has it."""
        return getattr(self.experiment, name, getattr(self.target, name, None))

    def completions_frame(self) -> pd.DataFrame:
        """One row a request; columns and units: `rundir.frames.completions_frame`."""
        from detcheck.rundir.frames import completions_frame

        return completions_frame(self)

    def variants_frame(self) -> pd.DataFrame:
        """One row a distinct answer; columns and units: `rundir.frames.variants_frame`."""
        from detcheck.rundir.frames import variants_frame

        return variants_frame(self)

    def _repr_html_(self) -> str:
        """The summary, for notebooks."""
        from detcheck.rundir.frames import run_html

        return run_html(self)
