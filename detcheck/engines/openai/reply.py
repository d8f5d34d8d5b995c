"""What comes back: chunks of a streamed reply, folded into a completion as they arrive.

A server's reply is untrusted: whatever has a wrong type is left out or fails the request, and
nothing is kept beyond the text, the token ids and three numbers a token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import orjson

from detcheck.completion import Completion, TopTwo
from detcheck.engines.openai.candidates import Ranked, chat_token, legacy_tokens
from detcheck.engines.openai.connection import redact
from detcheck.engines.openai.failures import ABORTED, MALFORMED, TRUNCATED, Failure
from detcheck.text import one_line

LARGEST_TOKEN_ID = 2**31 - 1
MOST_TOKENS = 2**31 - 1
"""A server that counts more cannot mean it."""
NOT_ENDED = ("abort", "error")
"""Finish reasons that say the server gave up."""
NOT_EMPTY = ("length", "tool_calls", "function_call", "content_filter")
"""Finish reasons that an empty answer cannot have."""


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object from untrusted bytes; raises Failure where it is none, or not UTF-8."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:  # half a surrogate pair, which JSON may hold
            value = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            raise Failure(MALFORMED, "the reply is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise Failure(MALFORMED, "the reply is not a JSON object")
    return value


def server_words(data: dict[str, Any]) -> str:
    """The message of an error reply, short and on one line; empty where there is none."""
    error = data.get("error", data.get("detail", data.get("message", "")))
    if isinstance(error, dict):
        error = error.get("message", "")
    if not isinstance(error, str):
        try:
            error = json.dumps(error)
        except RecursionError:  # orjson reads deeper than json writes
            return ""
    return one_line(error)[:200]


class Reply:
    """One reply while it comes in."""

    def __init__(self, max_new_tokens: int, secrets: Sequence[str] = ()):
        self.max_new_tokens = max_new_tokens
        self.done = False
        """Whether the stream has said that nothing follows."""
        self._secrets = secrets
        self._pieces: list[str] = []
        self._length = 0
        self._token_ids: list[int] = []
        self._ranked: list[Ranked] = []
        self._ends: list[int] = []
        self._usage_tokens: int | None = None
        self.finish_reason: str | None = None
        self.reply_id: str | None = None
        self.system_fingerprint: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens so far: as the server told them apart, else pieces of text that came."""
        told = max(len(self._token_ids), len(self._ranked), self._usage_tokens or 0)
        return told or len(self._pieces)

    @property
    def empty(self) -> bool:
        """Whether nothing came, not even a reason to end."""
        return not self._pieces and not self._token_ids and self.finish_reason is None

    @property
    def hidden(self) -> bool:
        """Whether tokens were generated and none shown, as of a model that was still reasoning."""
        shown = self._pieces or self._token_ids or self._ranked
        return not shown and ((self._usage_tokens or 0) > 1 or self.finish_reason in NOT_EMPTY)

    @property
    def has_token_ids(self) -> bool:
        """Whether the server gave ids."""
        return bool(self._token_ids)

    @property
    def has_candidates(self) -> bool:
        """Whether every token came with a runner-up."""
        return bool(self._ranked) and all(not math.isnan(one.gap) for one in self._ranked)

    @property
    def text(self) -> str:
        """What has been said so far, without a secret that came back, in however many pieces."""
        return redact("".join(self._pieces), self._secrets)

    def add(self, chunk: dict[str, Any]) -> bool:
        """Take one chunk (or a whole reply); True where it brought tokens. Raises Failure."""
        if chunk.get("error") is not None:
            words = redact(server_words(chunk), self._secrets)
            raise Failure(ABORTED, f"the server gave up: {words}")
        self._take_usage(chunk.get("usage"))
        if self.reply_id is None:
            self.reply_id = self._word(chunk.get("id"))
        if self.system_fingerprint is None:
            self.system_fingerprint = self._word(chunk.get("system_fingerprint"))
        choices = chunk.get("choices")
        if not choices:
            return False
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise Failure(MALFORMED, "the reply's choices are not a list of objects")
        return self._take_choice(choices[0])

    def completion(self) -> Completion:
        """The whole answer; raises Failure where it did not end."""
        if self.finish_reason is None:
            raise Failure(TRUNCATED, "the reply ended without a finish reason")
        if self.finish_reason in NOT_ENDED:
            raise Failure(ABORTED, "the server gave up on the request")
        token_ids = self._whole_ids()
        ends = self._whole_ends(len(token_ids) if token_ids is not None else len(self._ranked))
        return Completion(
            text=self.text,
            finish_reason=self.finish_reason,
            token_ids=token_ids,
            token_ends=ends,
            top_two=None if ends is None else self._top_two(len(ends)),
        )

    def _take_choice(self, choice: dict[str, Any]) -> bool:
        told = choice.get("delta") or choice.get("message") or {}
        texts = (
            [told.get(name) for name in ("reasoning_content", "reasoning", "content")]
            if isinstance(told, dict)
            else []
        )
        texts.append(choice.get("text"))
        piece = "".join(text for text in texts if isinstance(text, str))
        ids = _ids(choice)
        ranked = _ranked(choice.get("logprobs"))
        if not ids and ranked and all(one.token_id is not None for one in ranked):
            ids = [one.token_id for one in ranked if one.token_id is not None]
        self._append(piece, ids, ranked)
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = self._word(reason) or "stop"
        return bool(piece or ids or ranked)

    def _append(self, piece: str, ids: list[int], ranked: list[Ranked]) -> None:
        most = self.max_new_tokens
        if max(len(self._token_ids) + len(ids), len(self._ranked) + len(ranked)) > 4 * most + 64:
            raise Failure(MALFORMED, "the reply holds many more tokens than were asked for")
        if piece:
            self._pieces.append(piece)
        self._ends += _ends(self._length, piece, len(ids) or len(ranked), ranked)
        self._length += len(piece)
        self._token_ids += ids
        self._ranked += ranked

    def _whole_ids(self) -> tuple[int, ...] | None:
        """The ids, where they are all there; None leaves the text to compare."""
        if not self._token_ids:
            return None
        if self._usage_tokens is not None and len(self._token_ids) != self._usage_tokens:
            return None
        return tuple(self._token_ids)

    def _whole_ends(self, num_tokens: int) -> tuple[int, ...] | None:
        """Ends of the tokens; held back text may come later, the last one takes it.

        None where they are not known, or a secret was taken out of the text between them.
        """
        if num_tokens == 0 or len(self._ends) != num_tokens or len(self.text) != self._length:
            return None
        return (*self._ends[:-1], self._length)

    def _top_two(self, num_tokens: int) -> TopTwo | None:
        """Two best tokens at each position; None where the server ranked none, or lost count."""
        if not self._ranked or len(self._ranked) > num_tokens:
            return None
        missing = [Ranked.unknown()] * (num_tokens - len(self._ranked))
        ranked = [*self._ranked, *missing]
        ids = [one.runner_up_id for one in ranked]
        known = all(token_id is not None for token_id in ids) and self._token_ids
        return TopTwo(
            tuple(token_id for token_id in ids if token_id is not None) if known else None,
            tuple(one.gap for one in ranked),
            tuple(one.logprob for one in ranked),
            None if known else tuple(redact(one.runner_up, self._secrets) for one in ranked),
        )

    def _take_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        told = usage.get("completion_tokens")
        if type(told) is int and 0 <= told <= MOST_TOKENS:
            self._usage_tokens = told

    def _word(self, value: Any) -> str | None:
        """A short word of the server's about its reply; None where it is none."""
        if not isinstance(value, str) or not value:
            return None
        return one_line(redact(value, self._secrets))[:120]


def _ids(choice: dict[str, Any]) -> list[int]:
    """Token ids that the choice brings: vLLM's, or SGLang's meta information."""
    ids = choice.get("token_ids")
    if ids is None and isinstance(choice.get("meta_info"), dict):
        told = choice["meta_info"].get("output_token_logprobs")
        if isinstance(told, list):
            ids = [one[1] for one in told if isinstance(one, list) and len(one) > 1]
    if ids is None:
        return []
    if not isinstance(ids, list) or not all(
        type(one) is int and 0 <= one <= LARGEST_TOKEN_ID for one in ids
    ):
        raise Failure(MALFORMED, "the reply's token ids are not whole numbers")
    return ids


def _ranked(logprobs: Any) -> list[Ranked]:
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [chat_token(one) for one in content]
    return legacy_tokens(logprobs)


def _ends(start: int, piece: str, num_tokens: int, ranked: Sequence[Ranked]) -> list[int]:
    """Where the tokens of one chunk end in the whole text.

    By the tokens' own text where that is what the chunk says. Otherwise (some bytes of a character
    were held back, or several tokens came in one chunk without their text) its tokens share it
    evenly: an end may then be some characters off, the order never.
    """
    if num_tokens == 0:
        return []
    if len(ranked) == num_tokens and "".join(one.token for one in ranked) == piece:
        return [start + end for end in accumulate(len(one.token) for one in ranked)]
    return [start + len(piece) * (index + 1) // num_tokens for index in range(num_tokens)]
