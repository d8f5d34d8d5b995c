"""The body of a reply, read by its first bytes: servers label streams and objects wrongly."""

from __future__ import annotations

import re

from detcheck.engines.openai.complaints import parse_json, words_of_error
from detcheck.engines.openai.connection import redact
from detcheck.engines.openai.failures import ABORTED, MALFORMED, Failure
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.sse import BYTE_ORDER_MARK, DONE, ErrorEvent, EventParser
from detcheck.text import one_line

MOST_BYTES_A_TOKEN = 16_384
SPARE_BYTES = 262_144
"""A reply may have so many bytes for each token it was asked for, and so many beside."""
LONGEST_LINE = 1 << 20
LONGEST_WORDS = 1 << 16
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""Beginnings of a line of server-sent events."""
_KEEP_ALIVE = (b"null", b"[]", b"{}", b'""')
"""Data of events that say nothing."""
_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{1,400})", re.IGNORECASE)


class Body:
    """Takes the bytes of one reply as they arrive, and adds their content to `reply`.

    `feed` and `close` return True if tokens arrived. They raise Failure if the bytes are no reply.
    """

    def __init__(self, reply: Reply, secrets: tuple[str, ...] = ()):
        self._reply = reply
        self._secrets = secrets
        self._longest = reply.max_new_tokens * MOST_BYTES_A_TOKEN + SPARE_BYTES
        self._events: EventParser | None = None
        self._held = bytearray()
        """Everything so far, unless it is a stream of events."""

    def feed(self, data: bytes) -> bool:
        """Take the next bytes."""
        if self._events is not None:
            return self._take(self._events.feed(data))
        self._held += data
        start = self._held[:256].removeprefix(BYTE_ORDER_MARK).lstrip()
        if start.startswith(_FIELDS):
            self._events = EventParser(LONGEST_LINE, self._longest)
            return self._take(self._events.feed(bytes(self._held).removeprefix(BYTE_ORDER_MARK)))
        longest = self._longest if start.startswith((b"{", b"[")) else LONGEST_WORDS
        if len(self._held) > longest:
            raise Failure(MALFORMED, "the reply is longer than the answer to the request can be")
        return False

    def close(self) -> bool:
        """Take the end of the body."""
        if self._events is not None:
            return self._close_events(self._events)
        data = bytes(self._held).removeprefix(BYTE_ORDER_MARK).strip()
        if data.startswith((b"{", b"[")):
            return self._close_object(data)
        if data:
            raise Failure(MALFORMED, self._words(data))
        return False

    def _close_events(self, events: EventParser) -> bool:
        """An event that the end cut in its middle is left out: the reply has no end then."""
        try:
            return self._take(events.close())
        except Failure as failure:
            if failure.kind == MALFORMED:
                return False
            raise

    def _close_object(self, data: bytes) -> bool:
        """One object, or one a line."""
        lines = [line.strip() for line in data.split(b"\n") if line.strip()]
        if len(lines) > 1 and all(line.endswith(b"}") or _is_done(line) for line in lines):
            try:
                for line in lines:
                    if not _is_done(line):
                        parse_json(line)
            except Failure:  # one object on several lines
                lines = []
            if lines:
                return self._take(lines)
        return self._reply.add_whole(parse_json(data, self._secrets))

    def _take(self, events: list[bytes]) -> bool:
        """Add events to the reply."""
        has_tokens = False
        for data in events:
            if isinstance(data, ErrorEvent):
                words = words_of_error(data, self._secrets)
                raise Failure(ABORTED, f"the server gave up: {words}")
            if _is_done(data):
                self._reply.done = True
                break
            if data in _KEEP_ALIVE:
                continue
            has_tokens |= self._reply.add(parse_json(data, self._secrets))
        return has_tokens

    def _words(self, data: bytes) -> str:
        """The words of a reply that is neither events nor JSON, as a phrase of a message."""
        text = redact(data[:LONGEST_WORDS].decode("utf-8", "replace"), self._secrets)
        if not text.startswith("<"):
            return f"the server answered in plain words: {one_line(text)[:200]}"
        title = _TITLE.search(text)
        said = f": {one_line(title[1].strip())[:120]}" if title else ""
        return f"the server answered with a web page{said}"


def _is_done(data: bytes) -> bool:
    """True if the data of an event says that nothing follows."""
    return data.strip(b'"').upper() == DONE
