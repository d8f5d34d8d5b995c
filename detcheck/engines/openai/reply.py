"""One reply: chunks of a stream (or one whole object), folded into a completion as they arrive.

A server's reply is untrusted: a value of a wrong type is left out or fails the request, and
nothing is kept beyond the text, the token ids and three numbers a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from detcheck.completion import Completion, TopTwo
from detcheck.engines.openai import pieces as folding
from detcheck.engines.openai.candidates import Ranked, chat_token, legacy_tokens
from detcheck.engines.openai.complaints import as_words, complaint
from detcheck.engines.openai.connection import redact
from detcheck.engines.openai.endings import NOT_EMPTY, UNTOLD, gave_up, reason_of
from detcheck.engines.openai.failures import ABORTED, MALFORMED, TRUNCATED, Failure
from detcheck.engines.openai.parts import NOTHING, beside, spoken
from detcheck.engines.openai.pieces import Piece
from detcheck.engines.openai.usage import Usage
from detcheck.text import one_line

LARGEST_TOKEN_ID = 2**31 - 1
MOST_UNREAD = 8
"""Names of fields that are remembered because they were not read."""


class Reply:
    """One reply while it comes in."""

    def __init__(self, max_new_tokens: int, secrets: Sequence[str] = ()):
        self.max_new_tokens = max_new_tokens
        self.done = False
        """Whether the server has said that nothing follows: `[DONE]`, or one whole object."""
        self.usage = Usage()
        self.reply_id: str | None = None
        self.created: int | None = None
        """The server's time stamp, in seconds since 1970."""
        self.system_fingerprint: str | None = None
        self.instance: frozenset[tuple[str, str]] = frozenset()
        """(name, value) of the headers that name a machine or process."""
        self.unread: set[str] = set()
        """Names of fields with content that detcheck does not know."""
        self._secrets = secrets
        self._pieces: list[Piece] = []
        self._num_tokens = 0
        self._num_texts = 0
        self._reason: str | None = None
        self._early_reasons: set[str] = set()
        """Finish reasons that text followed: these words are not the end of this reply."""
        self._has_choices = False
        self._instead: dict[str, Any] = {}
        """The first object without choices: what a server sends instead of an answer."""
        self._indices: set[int] = set()
        """The numbers of its choices."""
        self._has_reasoning = False

    def add(self, chunk: dict[str, Any]) -> bool:
        """Take one chunk, or a whole reply; return True if it brought tokens. Raises Failure."""
        choices = self._read_beside(chunk)
        if not choices:
            return False
        self._check_one_answer(choices)
        self._has_choices = True
        return sum([self._take_choice(choice, chunk) for choice in choices]) > 0

    def _read_beside(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Read all of a chunk but its choices, and return these. Raises Failure."""
        words = complaint(chunk, self._secrets)
        if words is not None:
            raise Failure(ABORTED, f"the server gave up: {words}")
        beside = chunk.get("x_groq")
        self.usage = self.usage.updated(beside.get("usage") if isinstance(beside, dict) else None)
        self.usage = self.usage.updated(chunk.get("usage"))
        if self.reply_id is None:
            self.reply_id = self._word(chunk.get("id"))
        if self.created is None and type(chunk.get("created")) is int:
            self.created = chunk["created"]
        if self.system_fingerprint is None:
            self.system_fingerprint = self._word(chunk.get("system_fingerprint"))
        choices = chunk.get("choices")
        if isinstance(choices, list):  # some servers keep the place of a choice that says nothing
            choices = [one for one in choices if one is not None]
        if not choices:
            self._instead = self._instead or {**chunk, "choices": None, "usage": None}
            self._reason = self._word(reason_of({}, chunk)) or self._reason
            return []
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise Failure(MALFORMED, "the reply's choices are not a list of objects")
        return choices

    def add_whole(self, data: dict[str, Any]) -> bool:
        """Take a reply that is one object, which ends it; see `add`."""
        has_tokens = self.add(data)
        kind = data.get("object")
        self.done = not (isinstance(kind, str) and kind.endswith("chunk"))
        return has_tokens

    def completions(self) -> tuple[Completion, ...]:
        """The whole answer to each choice; raises Failure as `completion` does."""
        return (self.completion(),)

    def completion(self) -> Completion:
        """The whole answer; raises Failure if it did not end, or the server gave it up."""
        reason = self.finish_reason
        if reason is not None and gave_up(reason):
            raise Failure(ABORTED, f"the server gave up on the request ({one_line(reason)})")
        if not self._has_choices:
            kind = MALFORMED if self.done else TRUNCATED
            raise Failure(kind, f"the reply holds no answer{self._no_answer()}")
        if reason is None:
            raise Failure(TRUNCATED, "the reply ended without a finish reason")
        pieces = self._once()
        ids = self._whole_ids(pieces)
        ends = self._whole_ends(pieces, by_ids=ids is not None)
        return Completion(
            text=self._redacted(pieces),
            finish_reason=reason,
            token_ids=ids,
            token_ends=ends,
            top_two=None if ends is None else self._top_two(pieces, ids, len(ends)),
            unseen_tokens=self.unseen_tokens,
        )

    def _no_answer(self) -> str:
        """What came instead of choices, in the server's own words."""
        words = as_words(self._instead, self._secrets)
        return f", but {words}" if words else ": there are no choices in it"

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; `unknown` if the stream ended in order without a reason, None if cut."""
        if self._reason is not None and (self.done or self._reason not in self._early_reasons):
            return self._reason
        return UNTOLD if self.done else None

    @property
    def num_tokens(self) -> int:
        """Tokens so far: as the server counted them, else pieces of text, without repeats."""
        counted = max(self._num_tokens, self.usage.completion_tokens or 0)
        return counted or self._num_texts

    @property
    def hidden(self) -> bool:
        """True if tokens were generated and none shown, as by a model that was still reasoning."""
        counted = (self.usage.completion_tokens or 0) > 1 or bool(self.usage.reasoning_tokens)
        return not self._pieces and (counted or self._reason in NOT_EMPTY)

    @property
    def has_token_ids(self) -> bool:
        """True if the server gave the id of every token."""
        return self._whole_ids(self._once()) is not None

    @property
    def misses_token_ids(self) -> bool:
        """True if the server gave some token ids, but not for all of the answer."""
        pieces = self._once()
        return bool(folding.token_ids(pieces)) and self._whole_ids(pieces) is None

    @property
    def unseen_tokens(self) -> int:
        """Tokens that the server counted and did not show, at the least."""
        if self.has_token_ids:
            return 0
        return self.usage.unseen(self.shown_tokens, has_reasoning=self._has_reasoning)

    @property
    def shown_tokens(self) -> int:
        """The most tokens that the shown text can have."""
        return folding.most_tokens(self._once())

    @property
    def shows_reasoning(self) -> bool:
        """True if the server showed the model's reasoning."""
        return self._has_reasoning

    @property
    def has_candidates(self) -> bool:
        """True if the server named a runner-up for every token."""
        ranked = folding.ranked(self._once())
        return bool(ranked) and all(not math.isnan(one.gap) for one in ranked)

    @property
    def text(self) -> str:
        """All text so far, without the secrets that the server sent back."""
        return self._redacted(self._once())

    def _check_one_answer(self, choices: Sequence[dict[str, Any]]) -> None:
        """Raise Failure if the reply holds several answers and one was asked for, as `n` 1.

        Several choices of one index are pieces of one answer.
        """
        indices = [choice.get("index") for choice in choices]
        self._indices.update(index for index in indices if type(index) is int)
        if len(self._indices) > 1 or (len(choices) > 1 and None in indices):
            raise Failure(MALFORMED, "the reply holds several choices, and one was asked for (n 1)")

    def _take_choice(self, choice: dict[str, Any], chunk: dict[str, Any]) -> bool:
        delta, message = choice.get("delta"), choice.get("message")
        reasoning, unread = beside(choice)
        said = spoken({**reasoning, **(delta or {})} if reasoning else delta, choice.get("text"))
        whole = spoken(message) if message else NOTHING
        self._has_reasoning |= said.has_reasoning or whole.has_reasoning
        self._note_unread((*unread, *said.unread, *whole.unread))
        reason = reason_of(choice, chunk)
        repeats = bool(message) and bool(said.text or self._pieces)
        text = said.text or whole.text
        if repeats:
            text = said.text + self._unsaid(said.text, whole.text, is_last=reason is not None)
        self.usage = self.usage.updated(choice.get("usage"))
        is_new = False if repeats and not text else self._append(text, choice, said.reasoning)
        if is_new and self._reason is not None:
            self._early_reasons.add(self._reason)
            self._reason = None
        self._reason = self._word(reason) or self._reason
        return is_new

    def _append(
        self, text: str, choice: dict[str, Any], reasoning: tuple[tuple[str, str], ...]
    ) -> bool:
        """Keep the text and tokens of a choice; return False if it has none."""
        ranked, ids = _ranked(choice.get("logprobs")), _ids(choice)
        if not ids and ranked and all(one.token_id is not None for one in ranked):
            ids = [one.token_id for one in ranked if one.token_id is not None]
        if not (text or ids or ranked):
            return False
        self._num_tokens += folding.num_new_tokens(self._pieces, text, ids, ranked)
        if self._num_tokens > 4 * self.max_new_tokens + 64:
            raise Failure(MALFORMED, "the reply holds many more tokens than were asked for")
        self._num_texts += bool(text) and not folding.says_again(self._pieces, text)
        self._pieces.append(Piece(text, tuple(ids), tuple(ranked), reasoning))
        return True

    def _unsaid(self, coming: str, whole: str, *, is_last: bool) -> str:
        """What the message of the last chunk says more than the stream, such as its reasoning.

        Raises Failure if it says anything else, or a message in the middle says more.
        """
        streamed = "".join(piece.text for piece in self._pieces) + coming
        once = "".join(piece.text for piece in self._once()) + coming
        if whole.strip() in streamed or whole.strip() == once.strip():
            return ""
        before, found, after = whole.partition(once.strip())
        if not (found and once.strip() and is_last):
            raise Failure(MALFORMED, "the stream and the whole message beside it differ")
        return before + after

    def _note_unread(self, names: Sequence[str]) -> None:
        for name in names[: MOST_UNREAD - len(self.unread)]:
            self.unread.add(one_line(redact(name, self._secrets))[:40])

    def _once(self) -> Sequence[Piece]:
        return folding.said_once(self._pieces, self.usage.completion_tokens)

    def _redacted(self, pieces: Sequence[Piece]) -> str:
        """The text without secrets, even if a secret is spread over several pieces."""
        return redact("".join(piece.text for piece in pieces), self._secrets)

    def _whole_ids(self, pieces: Sequence[Piece]) -> tuple[int, ...] | None:
        """The ids, if they are those of the whole answer; None leaves the text to compare."""
        ids, counted = folding.token_ids(pieces), self.usage.completion_tokens
        if not ids or not folding.covers_text(pieces) or counted not in (None, len(ids)):
            return None
        return ids

    def _whole_ends(self, pieces: Sequence[Piece], *, by_ids: bool) -> tuple[int, ...] | None:
        """Ends of the tokens in the text; None if a secret was taken out of the text."""
        length = sum(len(piece.text) for piece in pieces)
        if len(self._redacted(pieces)) != length:
            return None
        return folding.token_ends(pieces, by_ids=by_ids)

    def _top_two(
        self, pieces: Sequence[Piece], ids: tuple[int, ...] | None, num_tokens: int
    ) -> TopTwo | None:
        """Two best tokens at each position; None if the server ranked none, or too many."""
        known = folding.ranked(pieces)
        if not known or len(known) > num_tokens:
            return None
        ranked = (*known, *[Ranked.unknown()] * (num_tokens - len(known)))
        runners_up = [one.runner_up_id for one in ranked]
        by_ids = ids is not None and all(token_id is not None for token_id in runners_up)
        return TopTwo(
            tuple(token_id for token_id in runners_up if token_id is not None) if by_ids else None,
            tuple(one.gap for one in ranked),
            tuple(one.logprob for one in ranked),
            None if by_ids else tuple(redact(one.runner_up, self._secrets) for one in ranked),
        )

    def _word(self, value: Any) -> str | None:
        """A short word of the server's about its reply; None if it is none."""
        if not isinstance(value, str) or not value:
            return None
        return one_line(redact(value, self._secrets))[:120]


def _ids(choice: dict[str, Any]) -> list[int]:
    """Token ids that the choice brings: vLLM's, or SGLang's meta information."""
    places = (choice, choice.get("delta"), choice.get("message"))
    found = (
        place["token_ids"] for place in places if isinstance(place, dict) and "token_ids" in place
    )
    ids = next((each for each in found if each is not None), None)
    if ids is None and isinstance(choice.get("meta_info"), dict):
        entries = choice["meta_info"].get("output_token_logprobs")
        if isinstance(entries, list):
            ids = [one[1] for one in entries if isinstance(one, list) and len(one) > 1]
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
