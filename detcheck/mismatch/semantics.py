"""What the sampler's recorded log-probabilities mean: the stated meaning held against others.

A wrong meaning is the commonest fault: a temperature that was not applied, probabilities
renormalised over the tokens that top-p kept, an offset of one token, a head in another number
type, another prompt. Each is computed from the decode steps and compared with the record. If one
leaves a third or less of the gap that the stated meaning leaves, it is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch.nn import functional as F

from detcheck.analysis.mismatch.measures import Floats
from detcheck.analysis.mismatch.results import NamedFault
from detcheck.engines.prompts import encode_prompt
from detcheck.engines.sampling import Filters, logprobs_of
from detcheck.mismatch.passes import prefilled
from detcheck.mismatch.rollouts import Rollout

EXPLAINS = 1 / 3
"""Share of the stated meaning's gap that another meaning may leave to be named."""
OTHER_PROMPT = 0.05
"""Mean gap, in nats, from which other prompts are tried."""
MOST_SEQUENCES = 16
"""Sequences that are computed with other prompts."""

TEMPERATURE = "temperature"
TEMPERATURE_APPLIED = "temperature-applied"
RENORMALISED = "renormalised"
SHIFTED_BACK, SHIFTED_ON = "off-by-one-before", "off-by-one-after"
HEAD_FLOAT32, HEAD_BFLOAT16 = "float32-head", "bfloat16-head"
OTHER_TEMPLATE = "other-prompt"

SENTENCES = {
    TEMPERATURE: "the record fits log-probabilities to which the temperature was not applied",
    TEMPERATURE_APPLIED: "the record fits log-probabilities to which the temperature was applied, "
    "and it is held to raw ones",
    RENORMALISED: "the record fits probabilities renormalised over the tokens that top-p, top-k "
    "or min-p kept",
    SHIFTED_BACK: "the record is off by one: each entry fits the token before",
    SHIFTED_ON: "the record is off by one: each entry fits the token after",
    HEAD_FLOAT32: "the record fits a head (the last product) computed in float32",
    HEAD_BFLOAT16: "the record fits a head (the last product) computed in bfloat16",
    OTHER_TEMPLATE: "the record fits another prompt",
}


@dataclass(slots=True)
class Meanings:
    """Log-probabilities of each rollout's sampled tokens under every meaning, by its name."""

    stated: list[Floats] = field(default_factory=list)
    others: dict[str, list[Floats]] = field(default_factory=dict)
    entropy: list[Floats] = field(default_factory=list)
    """Of the stated distribution at each token, in nats."""


def stated_temperature(rollout: Rollout, processed: bool) -> float:
    """The temperature that the stated meaning divides logits by."""
    return rollout.temperature if processed else 1.0


def logprobs(logits: torch.Tensor, rollout: Rollout, temperature: float) -> Floats:
    """(sampled tokens,) float32 log-probabilities of the rollout's tokens, from all its logits."""
    # A copy: ranking writes into its scores for a moment, and autograd holds on to the logits.
    scores = logits.detach().to(torch.float32, copy=True)
    if temperature != 1:
        scores = scores / temperature
    chosen = logprobs_of(scores, torch.tensor(rollout.completion_ids))
    found: Floats = chosen.numpy()[list(rollout.places)]
    return found


def add_meanings(
    meanings: Meanings,
    rollout: Rollout,
    logits: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    model: Any,
    processed: bool,
) -> None:
    """Add one rollout, from the logits and head inputs of its decode steps."""
    temperature = stated_temperature(rollout, processed)
    stated = logprobs(logits, rollout, temperature)
    meanings.stated.append(stated)
    log_probabilities = (logits.detach().float() / temperature).log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    meanings.entropy.append(entropy.cpu().numpy()[list(rollout.places)])
    found = dict(_others(rollout, logits, processed))
    if heads := _heads(logits, hidden, model):
        found |= {name: logprobs(other, rollout, temperature) for name, other in heads.items()}
    for name, values in found.items():
        meanings.others.setdefault(name, []).append(values)


def _others(
    rollout: Rollout, logits: torch.Tensor, processed: bool
) -> Iterator[tuple[str, Floats]]:
    if rollout.temperature != 1:
        name = TEMPERATURE if processed else TEMPERATURE_APPLIED
        yield name, logprobs(logits, rollout, 1.0 if processed else rollout.temperature)
    filters = Filters(rollout.top_k, rollout.top_p, rollout.min_p)
    if not filters.keep_all:
        yield RENORMALISED, _renormalised(rollout, logits, filters)


def _renormalised(rollout: Rollout, logits: torch.Tensor, filters: Filters) -> Floats:
    """Log-probabilities among the tokens that the filters keep."""
    found = []
    rows = logits.detach().float().cpu()
    for place in rollout.places:
        kept = filters.candidates(rows[place], rollout.temperature)
        scaled = rows[place].double() / rollout.temperature
        token = rollout.completion_ids[place]
        found.append(float(scaled[token] - scaled[kept].logsumexp(0)))
    return np.array(found, np.float32)


def _heads(
    logits: torch.Tensor, hidden: Sequence[torch.Tensor], model: Any
) -> dict[str, torch.Tensor]:
    """The logits with the head in other number types; none if it is no plain product."""
    head = model.get_output_embeddings()
    if len(hidden) != len(logits) or getattr(head, "weight", None) is None:
        return {}
    inputs, bias = torch.cat(list(hidden)), getattr(head, "bias", None)
    own = F.linear(inputs, head.weight, bias)
    if not torch.allclose(own.float(), logits.float(), rtol=2e-2, atol=2e-2):
        return {}
    names = {torch.float32: HEAD_FLOAT32, torch.bfloat16: HEAD_BFLOAT16}
    return {
        name: F.linear(inputs.to(dtype), head.weight.to(dtype), _to(bias, dtype)).float()
        for dtype, name in names.items()
        if dtype != head.weight.dtype
    }


def _to(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)


def named_fault(
    kernels: str, recorded: Sequence[Floats], meanings: Meanings, other_prompt: list[Floats] | None
) -> NamedFault | None:
    """The meaning that explains the record best; None if the stated one does.

    `recorded` are the sampled tokens' log-probabilities, a sequence each; `other_prompt` those
    computed with another prompt, of the first sequences.
    """
    stated = _gap(recorded, meanings.stated)
    gaps = {
        name: (_gap(recorded, values), stated)
        for name, values in meanings.others.items()
        if len(values) == len(recorded)
    }
    gaps |= _shifted(recorded, meanings.stated)
    if other_prompt is not None:
        few = len(other_prompt)
        pair = (_gap(recorded[:few], other_prompt), _gap(recorded[:few], meanings.stated[:few]))
        gaps[OTHER_TEMPLATE] = pair
    fitting = {name: pair for name, pair in gaps.items() if pair[0] <= EXPLAINS * pair[1]}
    if not fitting or stated == 0:
        return None
    name = min(fitting, key=lambda each: fitting[each][0])
    left, before = fitting[name]
    return NamedFault(
        kernels=kernels,
        fault=name,
        sentence=SENTENCES[name],
        mean_abs=left,
        stated_mean_abs=before,
    )


def _gap(one: Sequence[Floats], other: Sequence[Floats]) -> float:
    """Mean absolute difference over all tokens; infinite if there is none."""
    pairs = [np.abs(a - b) for a, b in zip(one, other, strict=True)]
    every = np.concatenate(pairs) if pairs else np.array([])
    return float(every.mean()) if len(every) else float("inf")


def _shifted(
    recorded: Sequence[Floats], stated: Sequence[Floats]
) -> dict[str, tuple[float, float]]:
    """The gaps of a record that is moved by one token, and the stated gaps of the same entries."""
    pairs = [pair for pair in zip(recorded, stated, strict=True) if len(pair[0]) > 1]
    if not pairs:
        return {}
    own = [values for values, _ in pairs]
    fits = [values for _, values in pairs]
    return {
        SHIFTED_BACK: (
            _gap([each[1:] for each in own], [each[:-1] for each in fits]),
            _gap([each[1:] for each in own], [each[1:] for each in fits]),
        ),
        SHIFTED_ON: (
            _gap([each[:-1] for each in own], [each[1:] for each in fits]),
            _gap([each[:-1] for each in own], [each[:-1] for each in fits]),
        ),
    }


def best_other_prompt(
    model: Any, tokenizer: Any, rollouts: Sequence[Rollout], processed: bool
) -> list[Floats] | None:
    """Log-probabilities of the first rollouts with the prompt that fits their record best.

    None if no other prompt is known. Prompts that are tried: the text with and without the chat
    template, and the token ids with and without a token at their start.
    """
    found = []
    for rollout in rollouts[:MOST_SEQUENCES]:
        recorded = np.array(rollout.logprobs, np.float32)[list(rollout.places)]
        tried = []
        for prompt_ids in _other_prompts(tokenizer, rollout):
            other = _with_prompt(rollout, prompt_ids)
            temperature = stated_temperature(rollout, processed)
            tried.append(logprobs(prefilled(model, other), other, temperature))
        if not tried:
            return None
        found.append(min(tried, key=lambda values: _gap([recorded], [values])))
    return found


def _with_prompt(rollout: Rollout, prompt_ids: tuple[int, ...]) -> Rollout:
    return msgspec.structs.replace(rollout, prompt_ids=prompt_ids)


def _other_prompts(tokenizer: Any, rollout: Rollout) -> list[tuple[int, ...]]:
    own = rollout.prompt_ids
    found: list[tuple[int, ...]] = [own[1:]]
    if tokenizer.bos_token_id is not None:
        found.append((tokenizer.bos_token_id, *own))
    if rollout.prompt:
        found += [
            encode_prompt(tokenizer, rollout.prompt, chat_template=template)
            for template in (True, False)
        ]
    return [each for each in dict.fromkeys(found) if each and each != own]
