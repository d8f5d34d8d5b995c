"""Rollouts: what a sampler answered, with the log-probability that it recorded for every token.

A file of rollouts holds one JSON object a line:

    {"prompt_ids": [1, 5], "completion_ids": [7, 9], "logprobs": [-0.2, -1.5],
     "temperature": 0.7, "top_p": 0.9, "prompt": "Why?"}

The first three are needed. Their names in TRL (`prompt_ids`, `completion_ids`, `logprobs`,
`sampling_per_token_logps`) and verl (`prompts`, `responses`, `rollout_log_probs`, or
`prompt_ids`, `response_ids`, `response_logprobs`) are understood, and so are lines that hold a
batch as lists of lists. Masks (`prompt_mask`, `completion_mask`, `response_mask`,
`attention_mask`) take padding away, and mark tokens of a completion that no model sampled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detcheck.errors import UsageError
from detcheck.text import count

PROMPT = ("prompt_ids", "prompt_token_ids", "prompts")
COMPLETION = ("completion_ids", "completion_token_ids", "response_ids", "responses")
LOGPROBS = (
    "logprobs",
    "completion_logprobs",
    "sampling_per_token_logps",
    "response_logprobs",
    "rollout_log_probs",
)
COMPLETION_MASKS = ("completion_mask", "response_mask", "sampled")
SETTINGS = ("temperature", "top_p", "top_k", "min_p")


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One completion of one prompt, as the sampler gave it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token of the completion, as the sampler recorded it, in nats."""
    sampled: tuple[bool, ...] = ()
    """False for tokens that no model sampled, such as a tool's output; empty: all were."""
    prompt: str = ""
    """Text of the prompt before any chat template; empty if unknown."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The whole sequence."""
        return self.prompt_ids + self.completion_ids

    @property
    def places(self) -> tuple[int, ...]:
        """Indices of the completion's tokens that were sampled."""
        if not self.sampled:
            return tuple(range(len(self.completion_ids)))
        return tuple(index for index, sampled in enumerate(self.sampled) if sampled)


def read_rollouts(path: Path) -> tuple[Rollout, ...]:
    """The rollouts of a file, in order.

    Raises UsageError, which names the line, if the file is missing, empty or not of this format.
    """
    found: list[Rollout] = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            place = f"{path} line {number}"
            found += [_rollout(row, place) for row in _rows(_object(line, place), place)]
    found = [rollout for rollout in found if rollout.places]
    if not found:
        raise UsageError(f"{path} holds no rollouts: write one JSON object a line.")
    return tuple(found)


def rollout_line(rollout: Rollout) -> str:
    """One line of a file of rollouts, without its line feed."""
    return msgspec.json.encode(rollout).decode()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise UsageError(f"There is no rollouts file {path}: check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: write it as JSON lines.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UsageError(f"{place} is not a JSON object: write one rollout a line.")
    return value


def _rows(value: dict[str, Any], place: str) -> Iterator[dict[str, Any]]:
    """The rollouts of one line: itself, or each row of a batch."""
    first = _named(value, COMPLETION, place)
    if not (isinstance(first, list) and first and isinstance(first[0], list)):
        yield value
        return
    for index in range(len(first)):
        row = {}
        for name, entry in value.items():
            is_batch = isinstance(entry, list) and len(entry) == len(first)
            row[name] = entry[index] if is_batch else entry
        yield row


def _named(value: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    for name in names:
        if value.get(name) is not None:
            return value[name]
    raise UsageError(f"{place} has no {names[0]!r}: give token ids and log-probabilities.")


def _rollout(row: Mapping[str, Any], place: str) -> Rollout:
    prompt, completion, logprobs = (
        _list(_named(row, names, place), names[0], place)
        for names in (PROMPT, COMPLETION, LOGPROBS)
    )
    prompt_mask, mask = _masks(row, len(prompt), len(completion), place)
    prompt = [token for token, real in zip(prompt, prompt_mask, strict=True) if real]
    length = max((index + 1 for index, real in enumerate(mask) if real), default=0)
    if len(logprobs) not in (len(completion), length):
        raise UsageError(
            f"{place} has {count(len(logprobs), 'log-probability')} for "
            f"{count(len(completion), 'token')}: give one for each token of the completion."
        )
    sampled = tuple(bool(real) for real in mask[:length])
    # null or NaN may stand beside a token that no model sampled.
    recorded = [
        0.0 if not own and str(value) in ("None", "nan") else value
        for value, own in zip(logprobs, sampled, strict=False)
    ]
    fields = {name: row[name] for name in SETTINGS if row.get(name) is not None}
    text = row.get("prompt")
    try:
        rollout = msgspec.convert(
            {
                "prompt_ids": prompt,
                "completion_ids": completion[:length],
                "logprobs": recorded,
                "sampled": () if all(sampled) else sampled,
                "prompt": text if isinstance(text, str) else "",
                "seed": row.get("seed"),
                **fields,
            },
            Rollout,
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"{place} is no rollout ({str(error).lower()}).") from error
    _check(rollout, place)
    # vLLM and verl write -1 for a filter that keeps all.
    return msgspec.structs.replace(rollout, top_k=max(rollout.top_k, 0))


def _list(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{place} has {name!r} that is no list: give one value for each token.")
    return value


def _masks(
    row: Mapping[str, Any], num_prompt: int, num_completion: int, place: str
) -> tuple[list[int], list[int]]:
    """1 for each real token of the prompt, and for each sampled token of the completion."""
    whole = row.get("attention_mask")
    prompt = row.get("prompt_mask") or [1] * num_prompt
    completion = next((row[name] for name in COMPLETION_MASKS if row.get(name)), None)
    if isinstance(whole, list) and len(whole) == num_prompt + num_completion:
        prompt = whole[:num_prompt]
        completion = completion or whole[num_prompt:]
    completion = completion or [1] * num_completion
    for mask in (prompt, completion):
        if any(entry not in (0, 1) for entry in _list(mask, "mask", place)):
            raise UsageError(f"{place} has a mask that is not of 0 and 1.")
    if len(prompt) != num_prompt or len(completion) != num_completion:
        raise UsageError(f"{place} has a mask of another length than its token ids.")
    return prompt, completion


def _check(rollout: Rollout, place: str) -> None:
    if not rollout.prompt_ids:
        raise UsageError(f"{place} has an empty prompt: the first token needs one before it.")
    if any(token < 0 for token in rollout.token_ids):
        raise UsageError(f"{place} has a negative token id.")
    own = [rollout.logprobs[index] for index in rollout.places]
    if any(not -1e4 < value <= 1e-3 for value in own):
        raise UsageError(
            f"{place} has a log-probability that is above 0 or not finite: give natural logarithms "
            "of probabilities."
        )
    if not 0 < rollout.temperature < math.inf:
        raise UsageError(
            f"{place} has the temperature {rollout.temperature}: give a number above 0, and leave "
            "it out if the tokens were chosen greedily."
        )
    if not (0 < rollout.top_p <= 1 and 0 <= rollout.min_p <= 1):
        raise UsageError(f"{place} has a top_p or min_p that is not between 0 and 1.")
