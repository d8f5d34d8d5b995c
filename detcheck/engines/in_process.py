"""The base of the engines that run a transformers model in this process."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from time import perf_counter
from typing import Any

import msgspec
import torch

from detcheck import models
from detcheck.completion import Completion, TopTwo, fingerprint_token_ids
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.decoding import Detokenizer, RankedTokens
from detcheck.engines.first_tokens import check_first_tokens
from detcheck.engines.memory import is_out_of_memory
from detcheck.engines.own_decoding import left_out
from detcheck.engines.partial import PartialCompletion
from detcheck.engines.passes import ForwardPass, PassObserver
from detcheck.engines.prompts import check_lengths, encode_prompt
from detcheck.engines.proofs import evidence_of
from detcheck.engines.sampling import Filters, Sampler
from detcheck.errors import OutOfMemory, UsageError
from detcheck.evidence import KernelsProof, LoadEvidence, ModelIdentity
from detcheck.experiment import Experiment
from detcheck.kernels.coverage import require_coverage, require_level
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.mode import Proof, keep_packed_weights, whole_mode_is_on
from detcheck.kernels.one_length import refuse_padding
from detcheck.kernels.settings import (
    CORE_FAMILIES,
    FULLY_INVARIANT,
    PREFILL,
    STOCK,
    KernelSettings,
)
from detcheck.kernels.triton import why_unavailable
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import FILLER_PROMPTS, Trial

WARM_UP_TOKENS = 2


class InProcessEngine:
    """Base of `continuous` and `static`: a subclass generates for the requests of one trial.

    Raises UsageError or ModelError, before anything is measured, if the experiment's prompts or
    kernels do not fit the model, or if the engine does not compute the model's own tokens.
    """

    instead = "serve it, and give the server as `endpoints`"
    """The advice for a model that this engine cannot run."""
    packs = False  # true if a forward pass has the tokens of several requests in one row
    replays = False  # true if steps are replayed as CUDA graphs, which call no override again

    def __init__(
        self, loaded: LoadedModel, experiment: Experiment, target: InProcess | None = None
    ):
        self.target = target or InProcess()
        self.loaded = loaded
        self.experiment = self.target.settle(experiment)
        self.sampler = Sampler(
            experiment.temperature,
            Filters(**experiment.filters),  # type: ignore[arg-type]
        )
        self.encode = lru_cache(maxsize=None)(self._encode)
        self._detokenize = Detokenizer(loaded.tokenizer)
        self._proofs: dict[str, list[Proof]] = {}
        self._warm: set[str] = set()
        self._idle_families: set[str] = set()
        """Core families of which this model has no op."""
        self._observer: PassObserver | None = None
        self._pass: ForwardPass | None = None
        self._around: AbstractContextManager[Any] | None = None
        self._longest = check_lengths(
            [self.encode(prompt) for prompt in self._prompts()],
            self.experiment.max_new_tokens,
            loaded.context_length,
        )
        self._on_close = ExitStack()
        self._free_weights = weakref.finalize(self, keep_packed_weights())
        try:
            self._check_kernels()
            check_first_tokens(self, self.experiment.kernels)
        except BaseException:
            self.close()  # the error's traceback keeps this engine, which must not keep the weights
            raise

    @property
    def one_length(self) -> bool:
        """True if no batch of this experiment has requests of several lengths, or padding."""
        return False

    @classmethod
    def open(cls, experiment: Experiment, target: InProcess, *_: object) -> InProcessEngine:
        """Load the model of `target`. Raises ModelError or UsageError if that cannot be done."""
        loaded = models.load(
            target.model,
            revision=target.revision,
            dtype=target.dtype,
            device=target.device,
            trust_remote_code=target.trust_remote_code,
        )
        return cls(loaded, experiment, target)

    def generate(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Generate for every request of the trial; the completions are in the trial's order."""
        raise NotImplementedError

    def prepare(self, trial: Trial) -> None:
        """Bring the engine into the state that the trial must find, outside the clock."""

    def load(self, trial: Trial) -> LoadEvidence | None:
        """Evidence of the trial that has just ended, beside that of its completions."""
        return None

    def reset(self) -> None:
        """Drop whatever an interrupted trial left behind."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """See `Engine.run_trial`."""
        try:
            with self._kernels(trial.condition.kernels), torch.inference_mode():
                self._warm_up(trial)
                self.prepare(trial)
                started = perf_counter()
                generated = self.generate(trial, on_tokens)
                elapsed = perf_counter() - started
        except BaseException as error:
            self.reset()
            if is_out_of_memory(error):
                raise OutOfMemory(_OUT_OF_MEMORY.format(trial.condition.batch_size)) from error
            raise
        completions = tuple(
            (position, self._completion(partial))
            for position, partial in enumerate(generated)
            if trial.requests[position].is_probe
        )
        num_tokens = sum(len(partial.token_ids) for partial in generated)
        return TrialResult(completions, num_tokens, elapsed, self.load(trial))

    def proof(self, kernels: str) -> KernelsProof:
        """See `Engine.proof`: calls are summed over the trials so far."""
        if kernels == STOCK:
            return KernelsProof(kernels, {})
        proofs = self._proofs.get(kernels, [])
        return evidence_of(kernels, proofs, self._required_families(kernels), replays=self.replays)

    def model_identity(self) -> ModelIdentity:
        """See `IdentifiesModel`: by the model's files, and by the token ids that it is sent."""
        loaded, experiment = self.loaded, self.experiment
        template = loaded.tokenizer.chat_template if self.target.chat_template else None
        return msgspec.structs.replace(
            models.identify(loaded.name, loaded.source, loaded.commit),
            chat_template_digest=models.digest_of_template(template),
            dtype=str(loaded.dtype).removeprefix("torch."),
            prompt_digests=tuple(
                fingerprint_token_ids(self.encode(prompt)) for prompt in experiment.prompts
            ),
            decoding=left_out(
                loaded.model.generation_config,
                sampled=experiment.temperature > 0,
                stated=experiment.filters,
            ),
        )

    def unfit_because(self) -> str:
        """The likely reason if this engine does not compute the model's own tokens."""
        return "its code in transformers does not work with a cache"

    def close(self) -> None:
        """See `Engine.close`."""
        self.reset()
        self._on_close.close()
        self._free_weights()

    @contextmanager
    def observed_by(self, observer: PassObserver) -> Iterator[None]:
        """Show every forward pass inside this context to `observer`; hooks are removed after it."""
        model = self.loaded.model
        hooks = (
            model.register_forward_pre_hook(self._forward_begins),
            model.register_forward_hook(self._forward_ends, always_call=True),
        )
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None
            self._forward_ends()
            for hook in hooks:
                hook.remove()

    @property
    def is_observed(self) -> bool:
        """True while an observer is shown the forward passes."""
        return self._observer is not None

    def begin_pass(self, forward_pass: ForwardPass) -> None:
        """A subclass calls this before the model computes `forward_pass`."""
        self._pass = forward_pass

    def choose(self, scores: torch.Tensor, partials: list[PartialCompletion]) -> RankedTokens:
        """Choose the next token of each request.

        `scores` are (requests, vocabulary) logits as the model gave them, a row for each of
        `partials`.
        """
        chosen = self.sampler.choose(scores, [partial.draw for partial in partials])
        if self._observer is not None and self._pass is not None:
            self._observer.scored(self._pass, scores, chosen)
        return chosen

    def _forward_begins(self, *_: Any) -> None:
        if self._observer is not None and self._pass is not None:
            self._around = self._observer.around(self._pass)
            if self._around is not None:
                self._around.__enter__()

    def _forward_ends(self, *_: Any) -> None:
        around, self._around = self._around, None
        if around is not None:
            around.__exit__(None, None, None)

    def _warm_up(self, trial: Trial) -> None:
        """Once a condition, outside the clock: kernels are chosen and memory is taken."""
        if trial.condition.condition_id in self._warm:
            return
        self._warm.add(trial.condition.condition_id)
        requests = tuple(
            replace(request, arrival_step=0, max_new_tokens=WARM_UP_TOKENS)
            for request in trial.requests
        )
        self.prepare(trial)
        self.generate(replace(trial, requests=requests), None)

    @contextmanager
    def _kernels(self, kernels: str) -> Iterator[None]:
        """The kernels of a trial; their proof is kept, whether or not their self-check passed."""
        pack_weights = self.target.pack_weights
        with kernels_in_force(kernels, must_pass=False, pack_weights=pack_weights) as mode:
            yield
            if mode is not None:
                self._proofs.setdefault(kernels, []).append(mode.proof())

    def _encode(self, prompt: str) -> tuple[int, ...]:
        return encode_prompt(
            self.loaded.tokenizer,
            prompt,
            chat_template=self.target.chat_template,
            chat=self.experiment.chat_of(prompt),
        )

    def _prompts(self) -> tuple[str, ...]:
        """Every prompt that may be asked, fillers included."""
        fillers = FILLER_PROMPTS if self.experiment.traffic == "mixed" else ()
        return (*self.experiment.prompts, *fillers)

    def _check_kernels(self) -> None:
        """Raise UsageError if this device or model cannot have the kernels of the experiment."""
        wanted = [name for name in self.experiment.kernels if name != STOCK]
        if not wanted:
            return
        problem = _why_no_kernels(self.loaded.device.type)
        if problem is not None:
            raise UsageError(problem)
        if any(KernelSettings.parse(name).whole_level for name in wanted):
            model, name = self.loaded.model, self.loaded.name
            found = require_coverage(model, name, self._longest, one_length=self.one_length)
            self._idle_families = {*CORE_FAMILIES} - found.families
            if FULLY_INVARIANT in wanted:
                require_level(model, name)
            if found.one_length:
                self._on_close.callback(refuse_padding(model, name, when=whole_mode_is_on))

    def _required_families(self, kernels: str) -> tuple[str, ...]:
        """Families that must be seen to run; not those that no op of this model belongs to."""
        setting = KernelSettings.parse(kernels)
        idle = self._idle_families if setting.whole_level else set()
        without = {*idle, PREFILL} if "attention" in idle else idle
        return tuple(family for family in setting.required_families if family not in without)

    def _completion(self, partial: PartialCompletion) -> Completion:
        if partial.error is not None:
            return Completion(
                "", "error", error=partial.error, observed_batch=partial.observed_batch
            )
        token_ids = tuple(partial.token_ids)
        text, ends = self._detokenize(token_ids)
        return Completion(
            text=text,
            finish_reason=partial.finish_reason or "length",
            token_ids=token_ids,
            token_ends=ends,
            top_two=TopTwo(
                tuple(partial.runner_up_token_ids), tuple(partial.gaps), tuple(partial.logprobs)
            ),
            observed_batch=partial.observed_batch,
        )


def token_rows(ranked: RankedTokens) -> list[tuple[int, int, float, float]]:
    """Ranked tokens as one (id, id of the runner-up, gap, log-probability) a row."""
    columns = (ranked.best, ranked.runner_up, ranked.gap, ranked.logprob)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def pad_token_id(loaded: LoadedModel) -> int:
    """A token to pad with: the tokenizer's, else the end of sequence, else 0."""
    value: Any = loaded.tokenizer.pad_token_id
    if value is not None:
        return int(value)
    return loaded.eos_token_ids[0] if loaded.eos_token_ids else 0


def _why_no_kernels(device: str) -> str | None:
    """A sentence if this device has no batch-invariant kernels."""
    if device == "cpu":
        return None
    if device == "cuda":
        return why_unavailable()
    return (
        f'There are no batch-invariant kernels for {device}: use `device="cpu"` or '
        '`kernels="stock"`.'
    )


_OUT_OF_MEMORY = (
    "Out of memory at batch size {}; what was measured before is kept: leave that batch size out, "
    "or lower `max_new_tokens`."
)
