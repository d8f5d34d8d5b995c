"""Before anything is measured: does the engine compute what the model itself computes?

An engine steps a model through a cache and, in continuous batching, through packed tensors. The
code of some models ignores that cache or cannot use it, and some then give wrong tokens without an
error. So the first tokens after one prompt are computed twice: by the engine, and by the model's
own forward pass over the whole sequence, alone and without a cache. Both must agree within the
noise of rounding, which is measured on the same sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from detcheck.engines.decoding import RankedTokens, rank
from detcheck.engines.memory import is_out_of_memory
from detcheck.engines.partial import Draw
from detcheck.engines.passes import ForwardPass
from detcheck.errors import ModelError, OutOfMemory, UsageError
from detcheck.grid import Condition
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.settings import STOCK
from detcheck.models import LoadedModel
from detcheck.text import count
from detcheck.traffic import PlannedRequest, Trial

if TYPE_CHECKING:
    from detcheck.engines.in_process import InProcessEngine

STEPS = 3
"""Tokens that are compared: one after a prefill, the others after decode steps."""
SAFETY = 8
"""Multiple of the measured noise that is allowed."""
LEAST_NOISE = {torch.bfloat16: 0.25, torch.float16: 0.03}
"""Noise that is always allowed, as a fraction of the standard deviation of the scores.

SmolLM2-135M on a CPU, 26 prompts, both engines: at most 0.128 in bfloat16 and 0.0125 in float16.
Models whose attention does not read the cache: 0.85 and more.
"""
LEAST_NOISE_OTHERWISE = 0.003
OTHER_KERNELS = 2.0
"""Multiple of it between two kinds of kernels, which round in other places."""


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """The model's own best tokens after one prompt, tokens that end a completion left out."""

    token_ids: tuple[int, ...]
    scores: torch.Tensor
    """(steps, vocabulary) float32 on the CPU, each step computed alone and without a cache."""
    noise: float
    """How far one pass over all steps moves these scores: largest root mean square of a step."""


def check_first_tokens(engine: InProcessEngine, kernels: Sequence[str]) -> None:
    """Raise ModelError if the engine's first tokens are not the model's own.

    The engine is checked under stock kernels and each setting of `kernels`. Raises OutOfMemory if a
    single request does not fit into memory.
    """
    prompt = min(engine.experiment.prompts, key=lambda text: len(engine.encode(text)))
    try:
        with torch.inference_mode():
            stock = _own_tokens(engine, prompt)
            for setting in dict.fromkeys((STOCK, *kernels)):
                packing = engine.target.pack_weights
                with kernels_in_force(setting, must_pass=False, pack_weights=packing):
                    _check(engine, prompt, stock, setting)
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"Out of memory before the first trial: {engine.loaded.name} does not fit with "
                "the cache of a single request; use a smaller model or a shorter prompt."
            ) from error
        raise
    finally:
        engine.reset()


def own_tokens(
    loaded: LoadedModel, prompt: tuple[int, ...], given: Sequence[int] | None = None
) -> OwnTokens:
    """Compute the model's own tokens after `prompt` (token ids), as many as are compared.

    With `given`, the scores at these tokens are computed instead of the model's best.
    """
    context = loaded.context_length
    steps = STEPS if context is None else max(1, min(STEPS, context - len(prompt)))
    sequence, rows = list(prompt), []
    for step in range(steps):
        scores = _scores(loaded, sequence, 1)[0]
        rows.append(scores.clone())
        scores[list(loaded.eos_token_ids)] = -torch.inf
        sequence.append(int(scores.argmax()) if given is None else given[step])
    at_once = _scores(loaded, sequence[:-1], steps)
    scores = torch.stack(rows)
    noise = float((at_once - scores).square().mean(1).sqrt().max())
    return OwnTokens(tuple(sequence[len(prompt) :]), scores, noise)


def difference(
    own: OwnTokens, rows: Sequence[torch.Tensor], dtype: torch.dtype, safety: float = 1.0
) -> str | None:
    """A phrase that says how the engine's scores differ from the model's own; None if they agree.

    `rows` are the engine's scores, (vocabulary,) a step. Agreement is not exact equality: the
    scores may differ by `safety` times the noise of rounding.
    """
    if len(rows) < len(own.token_ids):
        return f"it gave {len(rows)} of {count(len(own.token_ids), 'token')} asked for"
    if not own.scores.isfinite().all():
        return None  # nothing to compare with
    for step, (mine, theirs) in enumerate(zip(own.scores, rows, strict=False)):
        least = LEAST_NOISE.get(dtype, LEAST_NOISE_OTHERWISE) * float(mine.std())
        allowed = safety * max(SAFETY * own.noise, least)
        distance = float((theirs - mine).square().mean().sqrt())
        if not distance <= allowed:
            return (
                f"the scores of token {step} differ from the model's own by {distance:.3g}, and "
                f"rounding explains {allowed:.3g}"
            )
    return None


def _own_tokens(engine: InProcessEngine, prompt: str) -> OwnTokens:
    """The model's own tokens. Raises ModelError if the model fails even alone."""
    try:
        return own_tokens(engine.loaded, engine.encode(prompt))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{engine.loaded.name} fails in its own forward pass ({_words(error)}): no engine "
            "here can run it."
        ) from error


def _scores(loaded: LoadedModel, sequence: list[int], last: int) -> torch.Tensor:
    """(last, vocabulary) float32 logits on the CPU of the last tokens, without a cache."""
    model = loaded.model
    keeps = getattr(model, "_supports_logits_to_keep", None)
    options: dict[str, Any] = {"logits_to_keep": last} if keeps is not None and keeps() else {}
    input_ids = torch.tensor([sequence], device=loaded.device)
    logits = model(input_ids=input_ids, use_cache=False, **options).logits
    return logits[0, -last:].float().cpu()


def _check(engine: InProcessEngine, prompt: str, stock: OwnTokens, setting: str) -> None:
    """Raise ModelError if the engine's scores under the kernels in force are not the model's.

    The engine's scores are compared with the model's own under the same kernels, and these with
    its own under stock kernels.
    """
    dtype = engine.loaded.dtype
    try:
        own = stock
        if setting != STOCK:
            own = own_tokens(engine.loaded, engine.encode(prompt), stock.token_ids)
        differs = None
        for beside in _neighbours(engine, prompt, setting):
            rows = _engine_scores(engine, (prompt, *beside), own, setting)
            differs = differs or difference(own, rows, dtype)
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, UsageError):
            raise
        problem = f"transformers reports {_words(error)}"
        raise ModelError(_refusal(engine, setting, problem)) from error
    differs = differs or difference(stock, list(own.scores), dtype, OTHER_KERNELS)
    if differs is not None:
        raise ModelError(_refusal(engine, setting, differs))


def _neighbours(engine: InProcessEngine, prompt: str, setting: str) -> list[tuple[str, ...]]:
    """The prompts beside `prompt` in each run of the check: none, and then another one.

    The code of some models takes a packed pass for one request, which only several show.
    """
    other = prompt[: len(prompt) // 2]
    several = engine.packs and setting == STOCK and max(engine.experiment.batch_sizes) > 1
    return [(), (other,)] if several and engine.encode(other) else [()]


def _engine_scores(
    engine: InProcessEngine, prompts: Sequence[str], own: OwnTokens, setting: str
) -> list[torch.Tensor]:
    """The engine's scores at the model's own tokens, (vocabulary,) a step, of the first prompt."""
    observer = _Scores()
    requests = tuple(PlannedRequest(prompt, True, 0, len(own.token_ids)) for prompt in prompts)
    trial = Trial(Condition(0, setting, len(requests), 1), 0, requests)
    sampler, engine.sampler = engine.sampler, _GivenTokens(own.token_ids)  # type: ignore[assignment]
    try:
        with engine.observed_by(observer):
            engine.generate(trial, None)
    finally:
        engine.sampler = sampler
    return observer.rows


class _GivenTokens:
    """In place of a sampler: takes the given tokens, so that every step has the same prefix."""

    def __init__(self, token_ids: Sequence[int]):
        self._token_ids = token_ids

    def choose(self, scores: torch.Tensor, draws: Sequence[Draw]) -> RankedTokens:
        """See `Sampler.choose`."""
        given = [self._token_ids[position] for _, position in draws]
        return replace(rank(scores), best=torch.tensor(given))


class _Scores:
    """A `PassObserver` that keeps the scores of the first request."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    def around(self, forward_pass: ForwardPass) -> None:
        """See `PassObserver`: the forward pass itself is of no interest."""

    def scored(self, forward_pass: ForwardPass, scores: torch.Tensor, chosen: RankedTokens) -> None:
        """See `PassObserver`."""
        self.rows.append(scores[0].detach().float().cpu().clone())


def _refusal(engine: InProcessEngine, setting: str, problem: str) -> str:
    """The sentence for a model that the engine or the kernels cannot run, with advice."""
    name = engine.loaded.name
    if setting != STOCK:
        return (
            f"{name} computes something else under {setting} kernels ({problem}): leave these "
            "kernels out."
        )
    return (
        f"{name} cannot run under the engine {engine.target.engine}: {engine.unfit_because()} "
        f"({problem}); {engine.instead}."
    )


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160].rstrip(".")
