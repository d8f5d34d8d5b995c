"""An engine without a model: planted answers, with divergences wherever a test wants them.

The whole pipeline is tested with it, since the right report is known beforehand.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from detcheck.completion import Completion, TopTwo
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.evidence import KernelsProof, ModelIdentity, ObservedBatch
from detcheck.kernels.settings import STOCK
from detcheck.targets import Scripted
from detcheck.traffic import PlannedRequest, Trial

WORDS = (
    *("the", "old", "keeper", "lit", "a", "lamp", "and", "then"),
    *("sea", "went", "quiet", "under", "grey", "patient", "slow", "stars"),
)


@dataclass(frozen=True, slots=True)
class Planted:
    """One divergence: at `position`, for a share `rate` of the requests of these batches."""

    position: int
    token_id: int
    min_batch_size: int = 2
    rate: float = 1.0
    gap: float = 0.0
    """Gap of the reference between its best token and `token_id`, in nats."""
    kernels: str = STOCK


class ScriptedEngine:
    """Answers every prompt with the same words, apart from planted divergences.

    `noise` moves the gaps by up to so many nats, by chance. `observed_share` scales the
    batch that it claims to have formed. `fail_rate` is the share of requests that fail.
    `missing` names op families that the proof lacks. `seconds_per_token` is the time that it
    claims to have taken; nothing sleeps. `identity` is what it says of its model.
    """

    target = Scripted()

    def __init__(
        self,
        planted: Sequence[Planted] = (),
        *,
        num_tokens: int = 24,
        noise: float = 0.0,
        observed_share: float = 1.0,
        fail_rate: float = 0.0,
        missing: tuple[str, ...] = (),
        seconds_per_token: float = 0.001,
        fail_with: dict[tuple[str, int], BaseException] | None = None,
        identity: ModelIdentity | None = None,
    ):
        self.planted = tuple(planted)
        self.num_tokens = num_tokens
        self.noise = noise
        self.observed_share = observed_share
        self.fail_rate = fail_rate
        self.missing = missing
        self.seconds_per_token = seconds_per_token
        self.fail_with = dict(fail_with or {})
        """(condition id, trial) at which to raise instead of answering."""
        self.identity = identity or ModelIdentity()

    @classmethod
    def open(cls, *_: object) -> ScriptedEngine:
        """The engine without any planted divergence."""
        return cls()

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """See `Engine.run_trial`."""
        error = self.fail_with.get((trial.condition.condition_id, trial.index))
        if error is not None:
            raise error
        completions = tuple(
            (position, self._answer(trial, position, request))
            for position, request in enumerate(trial.requests)
            if request.is_probe
        )
        generated = self.num_tokens * len(trial.requests)
        if on_tokens is not None:
            on_tokens(generated)
        return TrialResult(completions, generated, generated * self.seconds_per_token)

    def proof(self, kernels: str) -> KernelsProof:
        """See `Engine.proof`: invariant kernels are proven but for the `missing` families."""
        if kernels == STOCK:
            return KernelsProof(kernels, {})
        return KernelsProof(kernels, {"scripted": 1}, self.missing, "passed")

    def model_identity(self) -> ModelIdentity:
        """See `IdentifiesModel`."""
        return self.identity

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, trial: Trial, position: int, request: PlannedRequest) -> Completion:
        # Trial 1 repeats trial 0 bit for bit, as a deterministic engine would.
        composition = 0 if trial.index == 1 else trial.index
        rng = random.Random(f"{trial.condition.condition_id}/{composition}/{position}")
        if rng.random() < self.fail_rate:
            return Completion("", "error", error="scripted failure")
        num_tokens = min(self.num_tokens, request.max_new_tokens)
        seed = int(hashlib.sha256(request.prompt.encode()).hexdigest()[:8], 16)
        token_ids = [(seed + index) % len(WORDS) for index in range(num_tokens)]
        runners_up = [(token + 1) % len(WORDS) for token in token_ids]
        gaps = [2.0 + self.noise * rng.uniform(-1, 1) for _ in token_ids]
        for plant in self.planted:
            if plant.position < num_tokens:
                self._apply(plant, trial, rng, token_ids, runners_up, gaps)
        pieces = [WORDS[token % len(WORDS)] + " " for token in token_ids]
        ends = accumulate(map(len, pieces))
        rows = max(1, round(trial.condition.batch_size * self.observed_share))
        return Completion(
            text="".join(pieces),
            finish_reason="length",
            token_ids=tuple(token_ids),
            token_ends=tuple(ends),
            top_two=TopTwo(tuple(runners_up), tuple(gaps), tuple(-gap / 10 for gap in gaps)),
            observed_batch=ObservedBatch(rows, rows, float(rows), rows, num_tokens),
        )

    def _apply(
        self,
        plant: Planted,
        trial: Trial,
        rng: random.Random,
        token_ids: list[int],
        runners_up: list[int],
        gaps: list[float],
    ) -> None:
        """Plant a flip: the reference has `token_id` as its second-best token; a hit takes it."""
        condition = trial.condition
        gaps[plant.position] = plant.gap
        runners_up[plant.position] = plant.token_id
        hit = rng.random() < plant.rate
        if (
            condition.kernels == plant.kernels
            and condition.batch_size >= plant.min_batch_size
            and hit
        ):
            runners_up[plant.position] = token_ids[plant.position]
            token_ids[plant.position] = plant.token_id
