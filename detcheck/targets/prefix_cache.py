"""The state of the prefix cache that a request finds: a varied factor of several targets."""

from __future__ import annotations

from typing import Annotated

from detcheck.errors import UsageError
from detcheck.options import Option

AS_IS, COLD, WARM = CACHE_STATES = ("as-is", "cold", "warm")

PrefixCache = Annotated[
    tuple[str, ...],
    Option(
        "State of the prefix cache, comma-separated: as-is (in this process: none); cold: each "
        "request computes its whole prompt; warm: the prompt was asked before. Cold and warm are "
        "compared, and proved by counters.",
        (),
        "LIST",
    ),
]


def check_states(states: tuple[str, ...]) -> None:
    """Raise UsageError unless `states` holds known states of a prefix cache, each once."""
    unknown = [state for state in states if state not in CACHE_STATES]
    if unknown:
        raise UsageError(
            f"Unknown prefix cache {unknown[0]!r}: choose one of {', '.join(CACHE_STATES)}."
        )
    if not states or len(set(states)) != len(states):
        raise UsageError("Give each state of the prefix cache once, such as cold,warm.")


def cache_name(state: str) -> str:
    """The name of a placement with this state: `cold cache`, `warm cache`; empty for as-is."""
    return "" if state == AS_IS else f"{state} cache"


def cache_state(placement: str) -> str:
    """The state that the name of a placement ends with; as-is if it names none."""
    return next((s for s in (COLD, WARM) if placement.endswith(cache_name(s))), AS_IS)
