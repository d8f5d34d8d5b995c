"""Settings of the small server of these tests, and the faults to plant in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Fault = Callable[[int, dict[str, Any]], str | None]
Canned = Callable[[int, dict[str, Any], int], str | None]


@dataclass
class Behaviour:
    """The server's settings and faults; they may be changed while it runs."""

    models: tuple[str, ...] = ("toy",)
    key: str | None = None
    token_ids: bool = True
    ids_every: int = 1
    """Only every so many replies have token ids."""
    logprobs: bool = True
    refuses: tuple[str, ...] = ()
    """A request with one of these fields is answered with the status `refusal`."""
    refusal: int = 400
    chat_error: tuple[int, str] | None = None
    """Status and message of every answer at /chat/completions."""
    models_error: tuple[int, str] | None = None
    """Status and message of every answer at /models."""
    ends: str = "length"
    usage: bool = True
    hides: bool = False
    """Tokens are sent in a field that detcheck does not know."""
    musings: bool = False
    """A field that detcheck does not know stands beside each token."""
    ignores_seed: bool = False
    ignores_temperature: bool = False
    ignores_max_tokens: bool = False
    cache: bool = False
    serial: bool = False
    greets_first: bool = False
    """Serial, but every reply's first token is sent at once."""
    one_piece: bool = False
    token_s: float = 0.001
    fault: Fault = lambda number, body: None
    canned: Canned = lambda number, body, in_flight: None
    """A text is sent instead of the answer; it depends on the request's number and the load."""
    differ_above: int | None = None
    """With more requests in flight than this, token 3 is another one."""
    fingerprints: tuple[str, ...] = ("fp_1",)
    context: int | None = None
    html: bool = False
    redirect: str | None = None
    echo_key: bool = False
    metrics: str | None = None
    choice_fault: str | None = None
    """Of requests for several choices: `cloned`, `missing`, `duplicated`, or `renumbered`, which
    swaps the first two with more than one request in flight."""
    whole: bool = False
    """Replies with several choices are one object and no stream."""
    compresses: str | None = None
    """Every reply is compressed by `gzip` or `deflate`; another name labels a list of models that
    nobody can read."""
    hidden_tokens: int = 0
    """Tokens of reasoning that `whole` replies count, and do not show: they have no token ids."""

    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
