"""What the engines that run a transformers model in this process have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import perf_counter
from typing import Any

import torch

from detcheck import models
from detcheck.completion import Completion, TopTwo
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.decoding import Detokenizer, Draw, RankedTokens, Sampler
from detcheck.errors import OutOfMemory, UsageError
from detcheck.evidence import KernelsProof, ObservedBatch
from detcheck.experiment import Experiment
from detcheck.kernels.coverage import require_coverage
from detcheck.kernels.mode import Proof, batch_invariant
from detcheck.kernels.settings import BATCH_INVARIANT, FULLY_INVARIANT, STOCK, KernelSettings
from detcheck.kernels.triton import why_unavailable
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import FILLER_PROMPTS, Trial

WARM_UP_TOKENS = 2


@dataclass(slots=True)
class Answer:
    """One request while it is being answered."""

    max_new_tokens: int
    seed: int = 0
    token_ids: list[int] = field(default_factory=list)
    runner_up_token_ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Requests in each forward pass that this one took part in."""
    query_tokens_max: int = 0
    finish_reason: str | None = None
    error: str | None = None

    def saw_forward(self, rows: int, query_tokens: int) -> None:
        """Note one forward pass that this request was part of."""
        self.rows.append(rows)
        self.query_tokens_max = max(self.query_tokens_max, query_tokens)

    def append(self, token: tuple[int, int, float, float], eos_token_ids: Sequence[int]) -> None:
        """Take the next token: (id, runner-up, gap, log-probability)."""
        token_id, runner_up, gap, logprob = token
        self.token_ids.append(token_id)
        self.runner_up_token_ids.append(runner_up)
        self.gaps.append(gap)
        self.logprobs.append(logprob)
        if token_id in eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"

    @property
    def draw(self) -> Draw:
        """What decides its next sampled token: its seed, and how many tokens it has."""
        return self.seed, len(self.token_ids)

    @property
    def observed_batch(self) -> ObservedBatch | None:
        """The batches it was computed in; None before its first forward pass."""
        if not self.rows:
            return None
        mean = sum(self.rows) / len(self.rows)
        steps = len(self.rows)
        return ObservedBatch(
            min(self.rows), max(self.rows), round(mean, 3), self.query_tokens_max, steps
        )


def token_rows(ranked: RankedTokens) -> list[tuple[int, int, float, float]]:
    """Ranked tokens as one (id, runner-up, gap, log-probability) a row."""
    columns = (ranked.best, ranked.runner_up, ranked.gap, ranked.logprob)
    return list(zip(*(column.tolist() for column in columns), strict=True))


class InProcessEngine:
    """Base of `continuous` and `static`: subclasses answer one trial's requests."""

    def __init__(
        self, loaded: LoadedModel, experiment: Experiment, target: InProcess | None = None
    ):
        self.target = target or InProcess()
        self.loaded = loaded
        self.experiment = self.target.settle(experiment)
        self.sampler = Sampler(experiment.temperature)
        self.encode = lru_cache(maxsize=None)(self._encode)
        self._detokenize = Detokenizer(loaded.tokenizer)
        self._proofs: dict[str, list[Proof]] = {}
        self._warm: set[str] = set()
        self._longest = 0
        """Tokens of the longest request, prompt and answer."""
        self._check_lengths()
        self._check_kernels()

    @classmethod
    def open(
        cls, experiment: Experiment, target: InProcess, _connection: object = None
    ) -> InProcessEngine:
        """Load the model of `target`. Raises ModelError or UsageError if that cannot be done."""
        loaded = models.load(
            target.model,
            dtype=target.dtype,
            device=target.device,
            trust_remote_code=target.trust_remote_code,
        )
        return cls(loaded, experiment, target)

    def answer(self, trial: Trial, on_tokens: OnTokens | None) -> list[Answer]:
        """Answer every request of the trial, in its order."""
        raise NotImplementedError

    def reset(self) -> None:
        """Drop whatever an interrupted trial left behind."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """See `Engine.run_trial`."""
        try:
            with self._kernels(trial.condition.kernels), torch.inference_mode():
                self._warm_up(trial)
                started = perf_counter()
                answers = self.answer(trial, on_tokens)
                elapsed = perf_counter() - started
        except BaseException as error:
            self.reset()
            if _is_out_of_memory(error):
                raise OutOfMemory(_OUT_OF_MEMORY.format(trial.condition.batch_size)) from error
            raise
        completions = tuple(
            (position, self._completion(answer))
            for position, (answer, request) in enumerate(zip(answers, trial.requests, strict=True))
            if request.is_probe
        )
        return TrialResult(completions, sum(len(a.token_ids) for a in answers), elapsed)

    def proof(self, kernels: str) -> KernelsProof:
        """See `Engine.proof`: calls are summed over the trials so far."""
        if kernels == STOCK:
            return KernelsProof(kernels, {})
        proofs = self._proofs.get(kernels, [])
        calls: Counter[str] = Counter()
        for proof in proofs:
            calls.update(proof.overrides)
        idle = {family for proof in proofs for family in proof.idle_families}
        required = KernelSettings.parse(kernels).required_families
        missing = tuple(family for family in required if family in idle or not proofs)
        problems = [proof.self_check for proof in proofs if proof.self_check != "passed"]
        return KernelsProof(kernels, dict(calls), missing, problems[0] if problems else "passed")

    def close(self) -> None:
        """See `Engine.close`."""
        self.reset()

    def _warm_up(self, trial: Trial) -> None:
        """Once a condition, outside the clock: kernels are chosen and memory is taken."""
        if trial.condition.condition_id in self._warm:
            return
        self._warm.add(trial.condition.condition_id)
        requests = tuple(
            replace(request, arrival_step=0, max_new_tokens=WARM_UP_TOKENS)
            for request in trial.requests
        )
        self.answer(replace(trial, requests=requests), None)

    @contextmanager
    def _kernels(self, kernels: str) -> Iterator[None]:
        if kernels == STOCK:
            yield
            return
        with batch_invariant(KernelSettings.parse(kernels).families) as mode:
            yield
            proof = mode.proof()
        self._proofs.setdefault(kernels, []).append(proof)

    def _encode(self, prompt: str) -> tuple[int, ...]:
        tokenizer = self.loaded.tokenizer
        if self.target.chat_template and tokenizer.chat_template:
            encoded = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
            )
        else:
            encoded = tokenizer(prompt)
        return tuple(encoded["input_ids"])

    def _check_lengths(self) -> None:
        context = self.loaded.context_length
        fillers = FILLER_PROMPTS if self.experiment.traffic == "mixed" else ()
        for number, prompt in enumerate((*self.experiment.prompts, *fillers), start=1):
            needed = len(self.encode(prompt)) + self.experiment.max_new_tokens
            self._longest = max(self._longest, needed)
            if context is not None and needed > context:
                raise UsageError(
                    f"Prompt {number} has {len(self.encode(prompt))} tokens; with "
                    f"{self.experiment.max_new_tokens} new ones it exceeds the model's context of "
                    f"{context}: shorten it or lower --max-new-tokens."
                )

    def _check_kernels(self) -> None:
        wanted = [kernels for kernels in self.experiment.kernels if kernels != STOCK]
        if not wanted:
            return
        problem = _why_no_kernels(self.loaded.device.type)
        if problem is not None:
            raise UsageError(problem)
        if {BATCH_INVARIANT, FULLY_INVARIANT} & {*wanted}:
            require_coverage(self.loaded.model, self.loaded.name, self._longest)

    def _completion(self, answer: Answer) -> Completion:
        if answer.error is not None:
            return Completion("", "error", error=answer.error, observed_batch=answer.observed_batch)
        token_ids = tuple(answer.token_ids)
        text, ends = self._detokenize(token_ids)
        return Completion(
            text=text,
            finish_reason=answer.finish_reason or "length",
            token_ids=token_ids,
            token_ends=ends,
            top_two=TopTwo(
                tuple(answer.runner_up_token_ids), tuple(answer.gaps), tuple(answer.logprobs)
            ),
            observed_batch=answer.observed_batch,
        )


def _why_no_kernels(device: str) -> str | None:
    """A sentence where this device has no batch-invariant kernels."""
    if device == "cpu":
        return None
    if device == "cuda":
        return why_unavailable()
    return (
        f"There are no batch-invariant kernels for {device}: use --device cpu or --kernels stock."
    )


_OUT_OF_MEMORY = (
    "Out of memory at batch size {}; what was measured before is kept: leave that batch size out, "
    "or lower --max-new-tokens."
)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "allocate memory" in text or "not enough memory" in text
    )


def pad_token_id(loaded: LoadedModel) -> int:
    """A token to pad with: the tokenizer's, else the end of sequence, else 0."""
    value: Any = loaded.tokenizer.pad_token_id
    if value is not None:
        return int(value)
    return loaded.eos_token_ids[0] if loaded.eos_token_ids else 0
