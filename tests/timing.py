"""Time that a busy machine does not change."""

from __future__ import annotations

import os


def child_seconds() -> float:
    """Processor time of the child processes that have ended so far."""
    times = os.times()
    return times.children_user + times.children_system
