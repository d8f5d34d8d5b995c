"""Server-sent events, parsed as the bytes come in."""

from __future__ import annotations

from detcheck.engines.openai.failures import MALFORMED, Failure

DONE = b"[DONE]"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Cuts a byte stream, in pieces of any size, into the data of its events.

    Raises Failure if a line or the stream is longer than allowed, so that memory stays bounded.
    """

    def __init__(self, longest_line: int, longest_stream: int):
        self._longest_line = longest_line
        self._left = longest_stream
        self._rest = b""
        self._data: list[bytes] = []
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes."""
        self._left -= len(piece)
        if self._left < 0:
            raise Failure(MALFORMED, "the reply is longer than the answer to the request can be")
        *lines, self._rest = (self._rest + piece).split(b"\n") if self._rest else piece.split(b"\n")
        if len(self._rest) > self._longest_line:
            raise Failure(MALFORMED, "a line of the reply has no end")
        events: list[bytes] = []
        for line in lines:
            self._take(line[:-1] if line.endswith(b"\r") else line, events)
        return events

    def close(self) -> list[bytes]:
        """The event that the end of the stream completes, if any."""
        events: list[bytes] = []
        self._take(self._rest, events)
        self._take(b"", events)
        self._rest = b""
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not self._begun:
            self._begun, line = True, line.removeprefix(BYTE_ORDER_MARK)
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif not line and self._data:
            if any(self._data):  # an empty one keeps the connection alive
                events.append(b"\n".join(self._data).strip())
            self._data.clear()
