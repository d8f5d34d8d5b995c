"""The summary of an analysis: a row per prompt and kernels setting.

The rows are what `detcheck run --json` prints and `run.json` keeps.
"""

from __future__ import annotations

from typing import Any

from detcheck.analysis.results import FLIP_KINDS, Analysis, Group


def summary_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One plain row per (prompt, kernels), in the order of `analysis.groups`.

    Keys: prompt, kernels, completions, failed, distinct (whatever the seed), most_common,
    first_divergence (token index or None), flips (branchings by kind), batch_evidence (a sentence),
    tokens_per_second, relative_cost (time a token as a multiple of stock's, or None), seeds (how
    many wanted samples: seeds, or choices of one request), distinct_within_seed (the largest over
    these).
    """
    return [_row(group) for group in analysis.groups]


def _row(group: Group) -> dict[str, Any]:
    return {
        "prompt": group.prompt,
        "kernels": group.kernels,
        "completions": group.completions,
        "failed": group.failed,
        "distinct": group.distinct,
        "most_common": group.most_common,
        "first_divergence": group.first_divergence,
        "flips": {kind: int(group.flips.get(kind, 0)) for kind in FLIP_KINDS},
        "batch_evidence": group.evidence.sentence,
        "tokens_per_second": group.tokens_per_second,
        "relative_cost": group.relative_cost,
        "seeds": len(group.seeds),
        "distinct_within_seed": group.distinct_within_seed,
    }
