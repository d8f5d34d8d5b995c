"""The batches of vLLM's own scheduler, step by step, and the evidence of a trial from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detcheck.errors import MeasurementError
from detcheck.evidence import FORWARD_PASSES, LoadEvidence
from detcheck.targets.prefix_cache import AS_IS, WARM
from detcheck.text import count
from detcheck.traffic import PlannedRequest


class SchedulerSteps:
    """Collects the reports of vLLM's scheduler about each step of a trial."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new trial: forget all steps."""
        self.last: tuple[int, int] | None = None
        """(requests, query tokens) of the last forward pass."""
        self._rows: list[int] = []
        self._query_tokens_max = 0
        self._preemptions = 0
        self._prefix_cache_hits = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Record one iteration of the engine, from vLLM's own statistics; either may be None."""
        details = getattr(scheduler_stats, "iteration_details", None)
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs
        if scheduler_stats is not None:
            self._prefix_cache_hits += scheduler_stats.prefix_cache_stats.hits
        if details is None or details.is_dummy:
            return
        rows = details.num_ctx_requests + details.num_generation_requests
        query_tokens = details.num_ctx_tokens + details.num_generation_tokens
        if rows > 0:
            self.last = (rows, query_tokens)
            self._rows.append(rows)
            self._query_tokens_max = max(self._query_tokens_max, query_tokens)

    def evidence(self) -> LoadEvidence | None:
        """The batches of the trial so far; None if vLLM reported none."""
        if not self._rows:
            return None
        return LoadEvidence(
            FORWARD_PASSES,
            max(self._rows),
            round(sum(self._rows) / len(self._rows), 3),
            self._query_tokens_max,
            self._preemptions,
            self._prefix_cache_hits,
        )


def check_cache(
    state: str,
    load: LoadEvidence | None,
    requests: Sequence[PlannedRequest] = (),
    cached: Sequence[int | None] = (),
) -> None:
    """Raise MeasurementError if vLLM's counters show another state of its prefix cache.

    `cached` are the prompt tokens that each of the `requests` took from it; None if this vLLM does
    not say. Fillers may be shorter than a block.
    """
    if state == AS_IS:
        return
    hits = None if load is None else load.prefix_cache_hits
    if hits is None or (hits > 0) != (state == WARM):
        raise MeasurementError(
            f"vLLM counted {hits or 0} prompt tokens from a {state} prefix cache: it keeps whole "
            "blocks only, so ask longer prompts, or leave `prefix_cache` out."
        )
    probes = [tokens for request, tokens in zip(requests, cached, strict=False) if request.is_probe]
    afresh = probes.count(0)
    if state == WARM and afresh:
        raise MeasurementError(
            f"{afresh} of {count(len(probes), 'request')} took no prompt token from vLLM's prefix "
            "cache, though it was filled: lower `batch_sizes`, or leave `prefix_cache` out."
        )


def stat_logger(steps: SchedulerSteps) -> Any:
    """A class of vLLM stat loggers that pass every report to `steps`."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Logger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0):
            pass

        def record(
            self, scheduler_stats: Any = None, iteration_stats: Any = None, *_: Any, **__: Any
        ) -> None:
            steps.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return Logger
