"""Relations between two executions of a tiny model, for `model_matrix.py`, by kernels setting.

`chunking` and `prefill-decode`: a prompt computed in chunks, and tokens as they are decoded,
against one forward pass. *Continuous*: the same requests answered alone and beside each other by
the continuous batching of transformers. `prefix-cache`: requests whose first blocks are in the
cache of that batching, against the same requests computed afresh. Bits are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from detcheck.completion import Completion
from detcheck.engines.continuous import PAGE_TOKENS, ContinuousEngine
from detcheck.errors import DetcheckError, MeasurementError, ModelError, UsageError
from detcheck.experiment import Experiment
from detcheck.grid import Condition
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.positions import first_position, positions_of, takes_positions
from detcheck.kernels.settings import BATCH_INVARIANT, FULLY_INVARIANT, STOCK
from detcheck.models import LoadedModel
from detcheck.models.tiny_loaded import TINY_VOCABULARY, with_tokenizer
from detcheck.targets import InProcess
from detcheck.targets.prefix_cache import COLD, WARM, cache_name
from detcheck.traffic import PlannedRequest, Trial

NEW_TOKENS = 4
CHUNK = 4
"""Tokens of a chunk, if a prompt is computed in chunks."""
LENGTHS = (9, 14, 3, 11)
"""Tokens of the requests; a window of the tiny models has 6."""
LONG_LENGTHS = (PAGE_TOKENS + 1, PAGE_TOKENS + 9, 2 * PAGE_TOKENS + 1, 2 * PAGE_TOKENS + 20)
"""Tokens of the requests that have whole blocks of the cache in front of their last token."""
COMPANIES = (((0, 0), (1, 0), (2, 0), (3, 0)), ((3, 0), (2, 1), (1, 1), (0, 3)))
"""The requests of each batch: (index of the request, forward pass at which it arrives)."""
HELD, VARIANT, REFUSED = "held", "variant", "refused"
CANNOT, TRACEBACK, TOO_LONG = "engine cannot", "traceback", "too long"

Bits = tuple[tuple[int, ...], tuple[float, ...]]
"""Token ids of an answer and their log-probabilities."""


@dataclass(slots=True)
class Relation:
    """The result of one architecture in one relation."""

    outcome: str
    reason: str | None = None
    """Why it could not be run, or was refused; or the traceback in one line."""
    answers: int = 0
    """Answers that were compared with each kernels setting, over all dtypes."""
    differ: dict[str, int] = field(default_factory=dict)
    """Answers that differ, by kernels."""


def chunking(models: Mapping[str, Any]) -> Relation:
    """Compare prompts in chunks with prompts at once, stock and fully invariant."""
    return compared(models, FULLY_INVARIANT, chunks_differ)


def prefill_decode(models: Mapping[str, Any]) -> Relation:
    """Compare decoded tokens with one forward pass over them, stock and fully invariant."""
    return compared(models, FULLY_INVARIANT, decoding_differs)


def batching(models: Mapping[str, Any]) -> Relation:
    """Compare requests alone with the same requests in company, stock and batch-invariant."""
    return compared(models, BATCH_INVARIANT, company_differs)


def prefix_cache(models: Mapping[str, Any]) -> Relation:
    """Compare a prefix computed afresh with one from the cache, stock and fully invariant."""
    return compared(models, FULLY_INVARIANT, warmth_differs)


def compared(
    models: Mapping[str, Any], setting: str, differences: Callable[[LoadedModel, str], list[bool]]
) -> Relation:
    """Count the answers that differ in each dtype of `models`; no exception leaves this function.

    `differences` gives for each answer of a model under a kernels setting whether it differs.
    """
    found: dict[str, list[bool]] = {}
    for kernels in (STOCK, setting):
        try:
            found[kernels] = [
                one
                for name, model in models.items()
                for one in differences(as_loaded(model, name), kernels)
            ]
        except DetcheckError as error:
            return Relation(outcome_of(error, kernels), str(error))
        except Exception as error:  # of the model's own code, or of transformers' batching
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            return Relation(TRACEBACK, reason)
    differ = {kernels: each.count(True) for kernels, each in found.items()}
    return Relation(
        VARIANT if differ[setting] else HELD, answers=len(found[setting]), differ=differ
    )


def outcome_of(error: DetcheckError, kernels: str) -> str:
    """`engine cannot` if stock kernels are in force as well: then the kernels are no reason."""
    known = isinstance(error, UsageError)
    return TRACEBACK if not known else CANNOT if kernels == STOCK else REFUSED


def chunks_differ(loaded: LoadedModel, kernels: str) -> list[bool]:
    """For each request: whether its logits in `generate` are others if its prompt is in chunks."""
    with kernels_in_force(kernels), torch.no_grad():
        whole = [generated(loaded.model, [request]) for request in requests_of(LENGTHS)]
        try:
            parts = [
                generated(loaded.model, [request], prefill_chunk_size=CHUNK)
                for request in requests_of(LENGTHS)
            ]
        except Exception as error:  # of transformers' own code, if stock kernels are in force
            if kernels != STOCK:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
            raise ModelError(f"`generate` computes no prompt in chunks ({reason}).") from error
    return [
        not torch.equal(torch.stack(one.logits), torch.stack(other.logits))
        for one, other in zip(whole, parts, strict=True)
    ]


def decoding_differs(loaded: LoadedModel, kernels: str) -> list[bool]:
    """For each request: whether one forward pass over it gives other logits than decoding it."""
    differ = []
    with kernels_in_force(kernels), torch.no_grad():
        for request in requests_of(LENGTHS):
            out = generated(loaded.model, [request])
            sequence = out.sequences[0, :-1].tolist()
            at_once = forward(loaded.model, [sequence], first=0)[0]  # where `generate` begins
            decoded = torch.stack(out.logits, dim=1)[0]
            differ.append(not torch.equal(decoded, at_once[-NEW_TOKENS:]))
    return differ


def company_differs(loaded: LoadedModel, kernels: str) -> list[bool]:
    """For each answer in company: whether it differs from the answer alone."""
    engine = opened(loaded, kernels, LENGTHS)
    try:
        alone = [answers(engine, kernels, [(at, 0)])[0] for at in range(len(LENGTHS))]
        return [
            answer != alone[at]
            for company in COMPANIES
            for (at, _), answer in zip(company, answers(engine, kernels, company), strict=True)
        ]
    finally:
        engine.close()


def warmth_differs(loaded: LoadedModel, kernels: str) -> list[bool]:
    """For each answer with a warm cache, alone and in company: whether it differs from cold."""
    engine = opened(loaded, kernels, LONG_LENGTHS, prefix_cache=(COLD, WARM))
    everyone = [(at, 0) for at in range(len(LONG_LENGTHS))]
    try:
        cold = [answers(engine, kernels, [each], COLD)[0] for each in everyone]
        warm = [answers(engine, kernels, [each], WARM)[0] for each in everyone]
        warm += answers(engine, kernels, everyone, WARM)
        return [one != other for one, other in zip(warm, cold * 2, strict=True)]
    finally:
        engine.close()


def answers(
    engine: ContinuousEngine, kernels: str, requests: Sequence[tuple[int, int]], cache: str = ""
) -> list[Bits]:
    """The bits of each request of one trial; `requests` are (index, arrival step)."""
    prompts = engine.experiment.prompts
    placement = cache_name(cache) if cache else ""
    first = requests[0][0] if len(requests) == 1 else 0
    condition = Condition(first, kernels, len(requests), len(requests), placement)
    planned = tuple(PlannedRequest(prompts[at], True, step, NEW_TOKENS) for at, step in requests)
    done = [one for _, one in engine.run_trial(Trial(condition, 0, planned)).completions]
    rows = max(one.observed_batch.rows_max for one in done if one.observed_batch)
    if rows != len(requests):
        raise MeasurementError(f"Batches of {len(requests)} were asked for, {rows} were seen.")
    return [bits_of(completion) for completion in done]


def bits_of(completion: Completion) -> Bits:
    """Raises MeasurementError if the request failed."""
    if completion.top_two is None:
        raise MeasurementError(completion.error or "An answer has no log-probabilities.")
    return completion.token_ids or (), completion.top_two.logprobs


def opened(
    loaded: LoadedModel, kernels: str, lengths: Sequence[int], **target: Any
) -> ContinuousEngine:
    """The engine, for requests of `lengths` tokens. Raises UsageError if it cannot run them."""
    prompts = tuple(" ".join(map(str, ids)) for ids in requests_of(lengths))
    experiment = Experiment(
        prompts=prompts, kernels=(kernels,), batch_sizes=(1, len(lengths)),
        completions=2 * len(lengths), max_new_tokens=NEW_TOKENS,
    )  # fmt: skip
    return ContinuousEngine(loaded, experiment, InProcess(chat_template=False, **target))


def requests_of(lengths: Iterable[int]) -> list[list[int]]:
    """Random token ids, one request of each length."""
    return [
        torch.randint(
            4, TINY_VOCABULARY, (length,), generator=torch.Generator().manual_seed(length + seed)
        ).tolist()
        for seed, length in enumerate(lengths)
    ]


def as_loaded(model: Any, dtype: str) -> LoadedModel:
    """A tiny model with a tokenizer whose words are token ids. No token ends an answer."""
    return with_tokenizer(model, f"{model.config.model_type} in {dtype}")


def forward(
    model: Any, requests: Sequence[Sequence[int]], first: int | None = None
) -> list[torch.Tensor]:
    """Logits (tokens, vocabulary) of each request, of one forward pass with padding.

    `first` is the position of the first token; None is that of the model itself.
    """
    inputs = padded(requests)
    if takes_positions(model):
        inputs["position_ids"] = positions_of(
            inputs["attention_mask"], first_position(model) if first is None else first
        )
    logits = model(**inputs, use_cache=False).logits
    return [row[-len(request) :] for row, request in zip(logits, requests, strict=True)]


def generate(model: Any, requests: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits (new tokens, vocabulary) of each request as they were decoded greedily."""
    return list(torch.stack(generated(model, requests).logits, dim=1))


def generated(model: Any, requests: Sequence[Sequence[int]], **options: Any) -> Any:
    """The output of transformers' `generate`, with `sequences` and `logits`."""
    return model.generate(
        **padded(requests), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
        output_logits=True, return_dict_in_generate=True, pad_token_id=0, **options,
    )  # fmt: skip


def padded(requests: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, requests))
    ids = [[0] * (longest - len(request)) + [*request] for request in requests]
    mask = [[0] * (longest - len(request)) + [1] * len(request) for request in requests]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
