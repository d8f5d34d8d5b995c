"""Observations of one server's replies over a whole run, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from time import monotonic

from detcheck.completion import fingerprint_text
from detcheck.engines.openai.choices_tally import ChoicesTally
from detcheck.engines.openai.reply import Reply

MOST_REMEMBERED = 4096
MOST_FINGERPRINTS = 16
IMPOSSIBLE = 0.05
"""A repeat that takes less than this share of a fresh request was not computed."""
MEASURABLE_S = 0.1
"""Fresh requests that are quicker than this say nothing about repeats."""
CLOCK_S = 2
"""Seconds after which the time stamps of two replies must differ."""


@dataclass(frozen=True, slots=True)
class RememberedReply:
    """The part of a reply that is remembered under its id."""

    fingerprint: str
    created: int | None
    at_s: float
    """When it ended, on the monotonic clock."""


@dataclass(slots=True)
class ReplyTally:
    """Counts over all replies of one server."""

    replies: int = 0
    system_fingerprints: set[str] = field(default_factory=set)
    without_fingerprint: int = 0
    repeated_ids: int = 0
    """Replies whose id an earlier one had."""
    cached: int = 0
    """Those of them that a cache must have sent: by their time or their time stamp."""
    with_partial_ids: int = 0
    """Replies whose token ids are not those of the whole answer."""
    with_other_text: int = 0
    """Completions whose token ids an earlier one had with another text."""
    with_unseen_tokens: int = 0
    unseen_tokens: int = 0
    """Tokens that the server counted and did not show, at the least."""
    uncounted: int = 0
    """Replies without a count of their tokens, and without the ids of all of them."""
    unread: set[str] = field(default_factory=set)
    """Names of fields of replies that detcheck does not know."""
    choices: ChoicesTally = field(default_factory=ChoicesTally)
    """Of the requests that asked for several choices above temperature 0."""
    _text_of_ids: dict[str, str] = field(default_factory=dict)
    """By fingerprint of the token ids, the fingerprint of the text that first came with them."""
    _by_id: dict[str, RememberedReply] = field(default_factory=dict)
    _fastest_token_s: float = math.inf
    _latest_created: int = 0

    def add(self, reply: Reply, elapsed_s: float) -> None:
        """Count a reply that has ended `elapsed_s` after its request was sent."""
        self.replies += 1
        if reply.system_fingerprint is None:
            self.without_fingerprint += 1
        elif len(self.system_fingerprints) < MOST_FINGERPRINTS:
            self.system_fingerprints.add(reply.system_fingerprint)
        self.with_partial_ids += reply.misses_token_ids
        if reply.has_token_ids:
            self._hold_ids_to_text(reply)
        unseen = reply.unseen_tokens
        self.with_unseen_tokens += unseen > 0
        self.uncounted += not (reply.usage.completion_tokens or reply.has_token_ids)
        self.unseen_tokens += unseen
        if len(self.unread) < MOST_FINGERPRINTS:
            self.unread |= reply.unread
        self._add_id(reply, elapsed_s)

    def forget_repeats(self) -> None:
        """Count repeated ids from now on: a check of its own judges the earlier ones."""
        self.repeated_ids = self.cached = 0

    def _hold_ids_to_text(self, reply: Reply) -> None:
        """Equal token ids have equal text, or they are not the ids of all that was generated."""
        for completion in reply.completions():
            if len(self._text_of_ids) >= MOST_REMEMBERED:
                self._text_of_ids.clear()
            text = fingerprint_text(completion.text)
            self.with_other_text += text != self._text_of_ids.setdefault(
                completion.fingerprint, text
            )

    def _add_id(self, reply: Reply, elapsed_s: float) -> None:
        token_s = elapsed_s / max(1, reply.num_tokens)
        told = RememberedReply(fingerprint_text(reply.text), reply.created, monotonic())
        before = None if reply.reply_id is None else self._by_id.get(reply.reply_id)
        if before is not None:
            self.repeated_ids += 1
            self.cached += self._is_copy(before, told, token_s)
        elif elapsed_s >= MEASURABLE_S:
            self._fastest_token_s = min(self._fastest_token_s, token_s)
        self._latest_created = max(self._latest_created, reply.created or 0)
        if reply.reply_id is not None:
            if len(self._by_id) >= MOST_REMEMBERED:
                self._by_id.clear()
            self._by_id[reply.reply_id] = before or told

    def _is_copy(self, before: RememberedReply, now: RememberedReply, token_s: float) -> bool:
        """True if a reply with an earlier one's id was not computed.

        An equal answer is not enough: ids may be drawn from a small pool. Either it came faster
        than the server has ever been, or with a time stamp that had passed.
        """
        if before.fingerprint != now.fingerprint:
            return False
        stamped = (
            now.created is not None
            and now.created == before.created
            and now.at_s - before.at_s >= CLOCK_S
            and self._latest_created >= now.created + CLOCK_S
        )
        return stamped or token_s < IMPOSSIBLE * self._fastest_token_s < math.inf
