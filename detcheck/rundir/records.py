"""What a run directory holds, as records and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detcheck.experiment import Experiment, kernels_claimed
from detcheck.text import quoted

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
COMPLETIONS_FILE = "completions.jsonl"
VARIANTS_FILE = "variants.jsonl"

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class ConditionRecord:
    """What happened to one condition; kept in `run.json`."""

    condition_id: str
    prompt_index: int
    kernels: str
    batch_size: int
    asked: int
    """Completions asked for."""
    status: str = "pending"
    """`pending`, `running`, `done`, `failed` (see `error`)."""
    trials: int = 0
    completed: int = 0
    """Completions that came back."""
    failed: int = 0
    """Requests that came back as errors."""
    generated_tokens: int = 0
    """Tokens generated, fillers included."""
    elapsed_s: float = 0.0
    rows_max: int = 0
    """Most requests that were seen to share a forward pass; 0 where batches were not observed."""
    error: str | None = None
    placement: str = ""
    """Where it was computed, such as `endpoint 2`; empty where the grid has only one place."""
    evidence_source: str = ""
    """How batches were seen: a source of `LoadEvidence`; empty where they were not."""
    rows_mean: float | None = None
    """Mean requests a forward pass over its trials; None where only requests tell, or nothing."""
    preemptions: int | None = None
    """Requests that the server put off; None where it does not count them."""
    prefix_cache_hits: int | None = None
    """Prompt tokens from the server's prefix cache; None where it does not count them."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed requests by kind, fillers included; empty where the engine tells no kinds."""
    retries: int = 0
    """Requests that were sent again since nothing had been generated."""

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens a second, fillers included; None before anything was timed."""
        return self.generated_tokens / self.elapsed_s if self.elapsed_s > 0 else None


@dataclass(frozen=True, slots=True)
class KernelsProof:
    """Evidence that a kernels setting was in force: what was overridden and seen to run."""

    kernels: str
    overrides: dict[str, int]
    """Calls each override served, by op name. 0 is normal for an op that the model never calls."""
    missing: tuple[str, ...] = ()
    """Op families that were asked for and of which no override was seen to run."""
    self_check: str | None = None
    """`passed`, or what the mode's own check found wrong; None where there is none (stock)."""

    @property
    def fault(self) -> str | None:
        """What it lacks as a proof, for a person; None where it is whole. Stock needs none, and
        a server's kernels claim nothing."""
        if not kernels_claimed(self.kernels):
            return None
        if self.missing:
            return f"overrides not seen to run: {', '.join(self.missing)}"
        if self.self_check != "passed":
            return f"its self-check says {quoted(self.self_check or 'nothing', 100)}"
        return None if any(self.overrides.values()) else "no override served a call"

    @property
    def complete(self) -> bool:
        """Whether every op family asked for was seen to run and the self-check passed."""
        return self.fault is None


def token_texts(text: str, token_ends: Sequence[int]) -> tuple[str, ...]:
    """`text` cut where its tokens end."""
    return tuple(text[start:end] for start, end in pairwise((0, *token_ends)))


@dataclass(frozen=True, slots=True)
class EndpointCheck:
    """One thing that was found out about a server before the experiment."""

    name: str
    """Two or three words, such as `seed`."""
    holds: bool | None
    """None where it could not be told, or only informs."""
    sentence: str
    decisive: bool = False
    """Whether nothing passes where it does not hold."""
    placement: str = ""
    """Which endpoint, such as `endpoint 2`; empty where there is one."""


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """One distinct answer to one prompt. Arrays are (tokens,)."""

    prompt_index: int
    fingerprint: str
    text: str
    token_ids: Int32Array | None
    token_ends: Int32Array | None
    """Length of `text` once each token is decoded."""
    runner_up_token_ids: Int32Array | None
    gaps: Float32Array | None
    """Best minus second-best logit at each position, from the completion that was seen first."""
    runner_up_texts: tuple[str, ...] | None = None
    """Second-best tokens where a server gave their text instead of ids; (tokens,)."""

    def __len__(self) -> int:
        return len(self.text) if self.token_ids is None else len(self.token_ids)

    def token_keys(self) -> tuple[int | str, ...]:
        """What tells its tokens apart: their ids, else their text; empty where there are none."""
        if self.token_ids is not None:
            return tuple(self.token_ids.tolist())
        return token_texts(self.text, () if self.token_ends is None else self.token_ends.tolist())

    def piece(self, start: int, stop: int) -> str:
        """Text of units `start` up to `stop` (tokens, or characters where there are no tokens)."""
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
    """Index into `Run.variants`; -1 where the request failed."""
    rows_max: Int32Array
    """Most requests that shared one of its forward passes; 0 where batches were not observed."""
    rows_mean: Float32Array
    query_tokens_max: Int32Array
    noise: Float32Array
    """Largest change of the gap between the two best logits, against the prompt's reference, over
    the positions before the first divergence; NaN where it was not measured."""
    digest: Int32Array
    """Code of the log-probability digest: equal codes are bitwise equal; -1 where none."""

    def __len__(self) -> int:
        return len(self.condition)


@dataclass(frozen=True, slots=True)
class Run:
    """A run as loaded and verified."""

    path: Path
    run_id: str
    detcheck_version: str
    experiment: Experiment
    environment: Mapping[str, Any]
    conditions: tuple[ConditionRecord, ...]
    proofs: Mapping[str, KernelsProof]
    """By kernels setting."""
    variants: tuple[StoredVariant, ...]
    completions: CompletionTable
    created: str
    finished: str | None
    """UTC, ISO 8601; None where the run was interrupted or is still going on."""
    summary: tuple[Mapping[str, Any], ...] = ()
    endpoint_checks: tuple[EndpointCheck, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every condition was measured to its end."""
        return all(record.status == "done" for record in self.conditions)

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
