"""Evidence of load from a server's own counters, in the Prometheus text format.

Known are vLLM, SGLang (`--enable-metrics`), llama.cpp's server (`--metrics`) and TGI. A server
counts the requests of all its clients. That is right for the batch, which they share. It also means
that preemptions and prefix-cache hits may be those of other clients. Texts are untrusted: lines
that cannot be read and impossible numbers are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from detcheck.evidence import SERVER_COUNTERS, LoadEvidence

MOST_CHARACTERS = 8_000_000
"""The rest of a longer text is not read."""
ONE_ROW = 1e-6
_LARGEST = 2**31 - 1
_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]{0,200})(?:\{(?P<labels>[^\n]{0,4000})\})?"
    r"[ \t]+(?P<value>[^\s#]{1,40})(?:[ \t]+-?\d{1,20})?[ \t]*\r?"
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_STARTED = re.compile(r"^process_start_time_seconds[ \t]+(\S{1,40})", re.MULTILINE)
_RANKS = ("tp_rank", "pp_rank", "moe_ep_rank")
"""SGLang may count the same requests once a rank; rank 0 stands for all."""

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of a server's metrics; a field is None if the server does not export it."""

    server: str | None = None
    """`vllm`, `sglang`, `llamacpp` or `tgi`; None if the text is of none of them."""
    running: int | None = None
    """Requests that are being computed now, of the busiest engine if there are several."""
    generation_tokens: float | None = None
    """Tokens generated since the server started."""
    accepted_draft_tokens: float = 0.0
    """Those of them that speculative decoding added to the one a request gets each iteration."""
    iterations: float | None = None
    """Forward passes of the engine since it started."""
    busy_rows: float | None = None
    """Requests summed over these iterations, if the server counts them itself."""
    iteration_tokens: Mapping[float, float] = field(default_factory=dict)
    """Iterations of at most so many query tokens, cumulative."""
    preemptions: float | None = None
    prefix_cache_hits: float | None = None
    """Prompt tokens that were found in the prefix cache."""


def read(text: str, model: str | None = None) -> Counters:
    """Counters in a `/metrics` text; `Counters()` if it is of no known server.

    If it names `model`, only that model is counted: the models behind a router share no batch. If
    it does not (an alias, an adapter), all requests of the server are counted.
    """
    samples = _of_model(_samples(text), model)
    for server, reader in _READERS.items():
        if any(name.startswith(server) for name in samples):
            return reader(samples)
    return Counters()


def process_start(text: str) -> float | None:
    """When the server's process started, in seconds since 1970; None if it does not say."""
    match = _STARTED.search(text[:MOST_CHARACTERS])
    return None if match is None else _number(match[1])


def load_evidence(
    before: Counters, samples: Sequence[Counters], after: Counters, requests: int
) -> LoadEvidence | None:
    """Evidence of the batches that a server formed between `before` and `after`.

    `rows_max` is the most requests that any of `samples`, polled in between, saw running, or the
    mean of an iteration if that is more: a lower bound, since a batch may come and go between
    two polls. vLLM's gauge counts requests that are admitted; those whose prompts wait for room
    in the token budget join an iteration or two later. `query_tokens_max` is the bound of the
    fullest histogram bucket that grew: an upper bound. `requests` are those that were answered: a
    server whose counters did not grow by a token each is not the one that answered them (or is
    one of several behind a balancer), and is no evidence. None as well if nothing was running
    in any sample and no iterations are counted.
    """
    if after.server is None or not _answered_here(before, after, requests):
        return None
    rows_mean = _rows_mean(before, after)
    polled = [sample.running for sample in samples if sample.running is not None]
    if rows_mean is not None and requests > 1 and abs(rows_mean - 1) < ONE_ROW:
        polled = []  # no iteration had a second row: the others were waiting
    rows_max = max([*polled, math.ceil(round(rows_mean or 0.0, 6))], default=0)
    if rows_max < 1:
        return None
    return LoadEvidence(
        source=SERVER_COUNTERS,
        rows_max=rows_max,
        rows_mean=None if rows_mean is None else round(rows_mean, 3),
        query_tokens_max=_query_tokens_max(before, after),
        preemptions=_whole(_grown(before.preemptions, after.preemptions)),
        prefix_cache_hits=cached_tokens(before, samples, after, requests),
    )


def cached_tokens(
    before: Counters, samples: Sequence[Counters], after: Counters, requests: int
) -> int | None:
    """Prompt tokens from the prefix cache between `before` and `after`; see `load_evidence`.

    None if they are not counted, if the count started again at 0 in between, or if the server did
    not answer the `requests`.
    """
    readings = [one for one in (before, *samples, after) if one.server is not None]
    if after.server is None or not _answered_here(before, after, requests):
        return None
    if any(_grown(a.prefix_cache_hits, b.prefix_cache_hits) is None for a, b in pairwise(readings)):
        return None
    return _whole(_grown(before.prefix_cache_hits, after.prefix_cache_hits))


def _answered_here(before: Counters, after: Counters, requests: int) -> bool:
    if before.generation_tokens is None or after.generation_tokens is None:
        return True  # there is nothing to check it by
    grown = _grown(before.generation_tokens, after.generation_tokens)
    return grown is not None and grown >= max(1, requests)


def _rows_mean(before: Counters, after: Counters) -> float | None:
    """Requests an iteration; None if one of them is not counted, or the server was restarted."""
    iterations = _grown(before.iterations, after.iterations)
    rows = _grown(before.busy_rows, after.busy_rows)
    if rows is None:
        tokens = _grown(before.generation_tokens, after.generation_tokens)
        drafts = _grown(before.accepted_draft_tokens, after.accepted_draft_tokens)
        rows = None if tokens is None or drafts is None else tokens - drafts
    if rows is None or not iterations or not 0 <= rows / iterations <= _LARGEST:
        return None
    return rows / iterations


def _query_tokens_max(before: Counters, after: Counters) -> int | None:
    """Bound of the highest bucket that grew; None if that one has no bound."""
    bounds = sorted(set(before.iteration_tokens) & set(after.iteration_tokens))
    grown = [after.iteration_tokens[bound] - before.iteration_tokens[bound] for bound in bounds]
    highest = None
    for bound, now, below in zip(bounds, grown, [0.0, *grown], strict=False):
        if now > below:
            highest = bound
    return int(highest) if highest is not None and highest <= _LARGEST else None


def _grown(before: float | None, after: float | None) -> float | None:
    """How much a counter grew; None if it is not known or has started again at 0."""
    if before is None or after is None or after < before:
        return None
    return after - before


def _whole(value: float | None) -> int | None:
    return None if value is None or value > _LARGEST else int(value)


def _samples(text: str) -> Samples:
    samples: Samples = {}
    for line in text[:MOST_CHARACTERS].split("\n"):
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        value = _number(match["value"]) if match else None
        if match and value is not None:
            labels = dict(_LABEL.findall(match["labels"] or ""))
            samples.setdefault(match["name"], []).append((labels, value))
    return samples


def _of_model(samples: Samples, model: str | None) -> Samples:
    name = "model_name"
    named = (labels.get(name) == model for values in samples.values() for labels, _ in values)
    if model is None or not any(named):
        return samples
    return {
        metric: [one for one in values if one[0].get(name, model) == model]
        for metric, values in samples.items()
    }


def _number(text: str) -> float | None:
    """A finite number of at least 0."""
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _values(samples: Samples, *names: str) -> Iterator[float]:
    """Values under the first of `names` that is there, one view of each engine only."""
    found = next((samples[name] for name in names if name in samples), [])
    for labels, value in found:
        twice = any(labels.get(rank, "0") != "0" for rank in _RANKS)
        if not twice and not labels.get("priority"):
            yield value


def _total(samples: Samples, *names: str) -> float | None:
    values = list(_values(samples, *names))
    return sum(values) if values else None


def _most(samples: Samples, *names: str) -> int | None:
    """Of several engines the busiest: requests of different engines share no batch."""
    values = [int(value) for value in _values(samples, *names) if value <= _LARGEST]
    return max(values, default=None)


def _buckets(samples: Samples, name: str) -> dict[float, float]:
    """Cumulative counts of a histogram by upper bound, summed over engines; +Inf included."""
    buckets: dict[float, float] = {}
    for labels, count in samples.get(f"{name}_bucket", []):
        try:
            bound = float(labels.get("le", ""))
        except ValueError:
            continue
        if bound >= 0:
            buckets[bound] = buckets.get(bound, 0.0) + count
    return buckets


_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


def _vllm(samples: Samples) -> Counters:
    return Counters(
        server="vllm",
        running=_most(samples, "vllm:num_requests_running"),
        generation_tokens=_total(samples, "vllm:generation_tokens_total"),
        accepted_draft_tokens=_total(samples, _ACCEPTED) or 0.0,
        iterations=_total(samples, "vllm:iteration_tokens_total_count"),
        iteration_tokens=_buckets(samples, "vllm:iteration_tokens_total"),
        preemptions=_total(samples, "vllm:num_preemptions_total"),
        prefix_cache_hits=_total(
            samples, "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"
        ),
    )


def _sglang(samples: Samples) -> Counters:
    """SGLang updates its gauge every few dozen decode steps only."""
    return Counters(
        server="sglang",
        running=_most(samples, "sglang:num_running_reqs"),
        generation_tokens=_total(samples, "sglang:generation_tokens_total"),
        preemptions=_total(samples, "sglang:num_retracted_requests_total"),
        prefix_cache_hits=_total(samples, "sglang:cached_tokens_total"),
    )


def _llamacpp(samples: Samples) -> Counters:
    """llama.cpp gives the busy slots of a decode as a mean since the start: times their number."""
    decodes = _total(samples, "llamacpp:n_decode_total")
    mean = _total(samples, "llamacpp:n_busy_slots_per_decode")
    return Counters(
        server="llamacpp",
        running=_most(samples, "llamacpp:requests_processing"),
        generation_tokens=_total(samples, "llamacpp:tokens_predicted_total"),
        iterations=decodes,
        busy_rows=None if decodes is None or mean is None else decodes * mean,
        prefix_cache_hits=_total(samples, "llamacpp:prompt_tokens_cached_total"),
    )


def _tgi(samples: Samples) -> Counters:
    return Counters(
        server="tgi",
        running=_most(samples, "tgi_batch_current_size"),
        generation_tokens=_total(samples, "tgi_request_generated_tokens_sum"),
    )


_READERS = {"vllm:": _vllm, "sglang:": _sglang, "llamacpp:": _llamacpp, "tgi_": _tgi}
