"""The faults that can be planted in the misbehaving server; `Faults()` has none."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

THINKING_TOKENS = 4
METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:iteration_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:generation_tokens_total",
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """One server: its size and its faults."""

    # Its size.
    served: tuple[str, ...] = ("tiny",)
    """Names at /v1/models; another model in a request is a 404."""
    max_num_seqs: int = 256
    """Requests that a step advances at most; 1 never batches."""
    max_model_len: int = 4096
    """Prompt and completion tokens; more is a 400."""
    answer_tokens: int = 40
    """Tokens after which an answer ends by itself."""
    quiet_s: float = 0.02
    """An idle engine waits until no request has arrived for so long, so that requests batch."""
    step_s: float = 0.0
    """Pause after each step."""
    others: int = 0
    """Other clients' requests, always running: they are in every batch and every counter."""

    # Wrong answers.
    flip_at: int | None = None
    """Token index at which the second-best token is taken instead of the best."""
    flip_above: int = 1
    """Only in steps of more requests than this."""
    flip_rate: float = 1.0
    """For this share of the requests, drawn independently."""
    flip_gap: float = 0.0
    """Gap of best and second-best log-probability at that token, in nats: 0 is a tie."""
    flip_on_cached_prefix: bool = False
    """Flip if the prompt was seen before, for any batch size."""
    flip_seed: int = 0
    """Seed of the draws of `flip_rate` and of every share below."""
    noise: float = 0.0
    """Log-probabilities change by up to this with the size of the batch; tokens do not."""
    logprob_decimals: int | None = None
    """Log-probabilities are rounded to so many decimals."""
    logprob_bits: int | None = None
    """Log-probabilities are rounded to so many significant bits."""
    replica_differs: bool = False
    """Of `system_fingerprints`, all but the first answer differently."""

    # Answers in unusual forms.
    shown_at: int | None = None
    """The text of this token names the size of its batch; its id and the later tokens do not."""
    ids_missing_at: int | None = None
    """The token at this index comes without its id."""
    thinking: str | None = None
    """The first `THINKING_TOKENS` tokens are reasoning: sent in `parts` of the content, in
    `reasoning_content`, in `both` that field and `reasoning`, or `hidden` and only counted."""
    repeats_whole: str | None = None
    """The last chunk holds the whole text again: in a `message`, or in its `delta`."""
    middle_reason: object = None
    """`finish_reason` of every chunk but the last."""
    last_reason: object = "as it is"
    """`finish_reason` of the last chunk, instead of the true one."""
    whole: bool = False
    """A request for a stream is answered by one JSON object."""
    one_answer: bool = False
    """Every prompt gets the same answer."""
    instance: str | None = None
    """Value of the header X-Served-By."""
    random_ids: bool = False
    """Ids of replies are random, as most servers' are."""
    id_pool: int | None = None
    """Ids of replies are drawn from so many."""

    # Parameters that are not honoured, or refused.
    ignores_seed: bool = False
    ignores_seed_on: str | None = None
    """Path, such as `/v1/completions`, on which no seed is honoured."""
    one_seed_a_batch: bool = False
    """Requests that start together all sample with the seed of the first."""
    refused_temperature: float | None = None
    """A request with this temperature is a 400."""
    forced_temperature: float | None = None
    ignores_max_tokens: bool = False
    gives_logprobs: bool = True
    gives_token_ids: bool = True
    gives_usage: bool = True
    ignores_cache_salt: bool = False
    cached_share: float = 1.0
    """The share of the requests that look into the prefix cache, drawn independently."""
    reports_cached: str | int | None = None
    """Cached prompt tokens in the usage: `right`, or this number in every reply."""
    refuses: tuple[str, ...] = ()
    """Parameters of a request that are a 400, as strict servers do."""

    # Caches, replicas, buffers.
    cache: bool = False
    """An equal request gets the stored reply, id included, and no step is run."""
    system_fingerprints: tuple[str | None, ...] = (None,)
    """Handed out in turn, as replicas behind a balancer do."""
    buffered: bool = False
    """A streamed reply arrives in one piece, once it is complete."""
    preempt_every: int = 0
    """Every so many steps the newest of several running requests starts again."""

    # Transport. All of these hit the share `rate` of the generating requests.
    rate: float = 1.0
    status: int | None = None
    """Answer with this status; 401 and others in OpenAI's error format."""
    retry_after: str | None = None
    only: str = ""
    """Only requests whose prompt holds this, so that a client's checks are spared."""
    failures: int | None = None
    """Only the first so many of them; None: no limit."""
    drop: str | None = None
    """`before` the headers, after the `first` token, or in the `middle`: the connection resets."""
    stall: str | None = None
    """`before` the headers, `first` token, or `middle`: silence for `stall_s`."""
    stall_s: float = 3600.0
    truncate: bool = False
    """The reply ends in the middle as if complete: no finish reason, no [DONE], half a JSON."""
    flood: str | None = None
    """`tokens` without end, one `line` without end, or a `header` of a megabyte."""
    encoding: str | None = None
    """`latin-1`, `utf-16`, or `invalid` UTF-8."""
    body: str | None = None
    """A key of `replies.BODIES`, sent instead of the reply: malformed JSON, HTML and others."""
    content_type: str | None = None
    """Sent instead of the right content type."""
    redirect_to: str | None = None
    """URL that every request below /v1 is redirected to (307)."""
    not_an_api: bool = False
    """A web server that knows none of the paths: HTML, 404."""

    # Counters.
    metrics: bool = True
    metrics_missing: tuple[str, ...] = ()
    """Names of `METRICS` that are left out."""
    metrics_scale: float = 1.0
    """Every number at /metrics is multiplied by this."""
    others_cached: int = 0
    """Cached prompt tokens of other clients at each step: they are in the counter."""
    metrics_frozen: bool = False
    """Every number stays 0."""
    metrics_reset: bool = False
    """Counters start again at 0 whenever they have been read, as after a restart."""
    metrics_garbage: bool = False
    """Lines that are no Prometheus text."""

    # Access.
    api_key: str | None = None
    """A request with another key or none is a 401."""
    key_refused: int | None = None
    """Every key is refused with this status."""

    def __post_init__(self) -> None:
        for name in ("served", "refuses", "system_fingerprints", "metrics_missing"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def parse(assignments: list[str]) -> Faults:
    """Faults from `name=value`; a value is JSON if it can be parsed, else text.

    Raises ValueError if there is no such fault.
    """
    known = {field.name for field in fields(Faults)}
    values = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in known:
            raise ValueError(f"no fault {name!r}: one of {', '.join(sorted(known))}")
        values[name] = _value(value or "true")
    return Faults(**values)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
