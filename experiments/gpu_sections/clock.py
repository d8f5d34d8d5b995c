"""How long a section of `gpu.py` may go on."""

from __future__ import annotations

import time


class Clock:
    """The time that a section has left."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; negative once they are spent."""
        return self._end - time.monotonic()

    def spent(self) -> bool:
        """Whether the section ought to stop and return what it has."""
        return self.left() <= 0
