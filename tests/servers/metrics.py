"""The engine's counters as Prometheus text with vLLM's names; faults may change the numbers."""

from __future__ import annotations

from itertools import accumulate

from .faults import Faults
from .step_engine import BUCKETS, Counters


def metrics_text(counters: Counters, faults: Faults) -> str:
    """The body of /metrics."""
    if faults.metrics_garbage:
        return (
            "vllm:num_requests_running{ NaN NaN\n\x00}} 12,5\nvllm:iteration_tokens_total_count\n"
        )
    label = f'engine="0",model_name="{faults.served[0]}"'
    scale = 0.0 if faults.metrics_frozen else faults.metrics_scale
    simple = {
        "vllm:num_requests_running": ("gauge", counters.running),
        "vllm:num_requests_waiting": ("gauge", counters.waiting),
        "vllm:num_preemptions_total": ("counter", counters.preemptions),
        "vllm:prefix_cache_hits_total": ("counter", counters.prefix_hits),
        "vllm:prefix_cache_queries_total": ("counter", counters.prefix_queries),
        "vllm:generation_tokens_total": ("counter", counters.generated_tokens),
    }
    lines = []
    for name, (kind, value) in simple.items():
        if name not in faults.metrics_missing:
            lines += [f"# HELP {name} .", f"# TYPE {name} {kind}"]
            lines.append(f"{name}{{{label}}} {float(value) * scale}")
    if "vllm:iteration_tokens_total" not in faults.metrics_missing:
        lines += _histogram(counters, label, scale)
    return "\n".join(lines) + "\n"


def _histogram(counters: Counters, label: str, scale: float) -> list[str]:
    name = "vllm:iteration_tokens_total"
    lines = [f"# HELP {name} .", f"# TYPE {name} histogram"]
    bounds = [*(f"{float(bound)}" for bound in BUCKETS), "+Inf"]
    for bound, count in zip(bounds, accumulate(counters.steps_by_tokens), strict=True):
        lines.append(f'{name}_bucket{{{label},le="{bound}"}} {count * scale}')
    lines.append(f"{name}_count{{{label}}} {sum(counters.steps_by_tokens) * scale}")
    lines.append(f"{name}_sum{{{label}}} {float(counters.step_tokens) * scale}")
    return lines
