"""Server-sent events, parsed as the bytes come in."""

from __future__ import annotations

from detcheck.engines.openai.endings import gave_up
from detcheck.engines.openai.failures import MALFORMED, Failure

DONE = b"[DONE]"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ErrorEvent(bytes):
    """The data of an event whose name says that the server gave up, such as `event: error`."""


class EventParser:
    """Cuts a byte stream, in pieces of any size, into the data of its events.

    Raises Failure if a line or the stream is longer than allowed, so that memory stays bounded.
    """

    def __init__(self, longest_line: int, longest_stream: int):
        self._longest_line = longest_line
        self._left = longest_stream
        self._rest = b""
        self._data: list[bytes] = []
        self._is_error = False
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes."""
        self._left -= len(piece)
        if self._left < 0:
            raise Failure(MALFORMED, "the reply is longer than the answer to the request can be")
        data = self._rest + piece if self._rest else piece
        held = b""
        if b"\r" in data:  # lines end with CR LF, LF or CR
            data, held = (data[:-1], b"\r") if data.endswith(b"\r") else (data, b"")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        self._rest = rest + held
        if len(self._rest) > self._longest_line:
            raise Failure(MALFORMED, "a line of the reply has no end")
        events: list[bytes] = []
        for line in lines:
            self._take(line, events)
        return events

    def close(self) -> list[bytes]:
        """The event that the end of the stream completes, if any."""
        events: list[bytes] = []
        self._take(self._rest.removesuffix(b"\r"), events)
        self._take(b"", events)
        self._rest = b""
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not self._begun:
            self._begun, line = True, line.removeprefix(BYTE_ORDER_MARK)
        if line.startswith(b"data:"):
            data = line[6:] if line[5:6] == b" " else line[5:]
            if self._is_whole(before=data):
                self._take(b"", events)
            self._data.append(data)
        elif line.startswith(b"event:"):
            self._is_error = gave_up(line[6:].decode("utf-8", "replace"))
        elif not line:
            data = b"\n".join(self._data).strip()
            if self._is_error:
                events.append(ErrorEvent(data))
            elif data:  # an empty one keeps the connection alive
                events.append(data)
            self._data.clear()
            self._is_error = False

    def _is_whole(self, *, before: bytes) -> bool:
        """True if the data so far is a whole object: some servers leave out the blank line."""
        if not self._data or not before.startswith((b"{", DONE)):
            return False
        return self._data[0].startswith(b"{") and self._data[-1].endswith(b"}")
