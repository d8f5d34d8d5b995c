"""The report as CSV: a row a condition, and a row a variant.

Spreadsheets run cells that look like formulas, so text that begins like one gets a leading
apostrophe (OWASP's advice on CSV injection).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import Any

from detcheck.analysis.results import Analysis, Group
from detcheck.experiment import condition_id
from detcheck.report.text import INVISIBLE, cap, char_name

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
CELL_LIMIT = 32_000
"""Spreadsheets cut cells at 32,767 characters without a word."""

CONDITION_COLUMNS = (
    "condition", "prompt", "kernels", "batch_size", "asked", "completions", "failed", "distinct",
    "most_common", "differ_from_reference", "observed_rows_max", "observed_rows_mean",
    "tokens_per_second", "relative_cost", "exact_repeats_differ",
)  # fmt: skip
VARIANT_COLUMNS = (
    "prompt", "kernels", "rank", "count", "share", "is_reference", "first_divergence",
    "batch_sizes", "flip", "reference_gap", "noise", "fingerprint", "text",
)  # fmt: skip


def conditions_csv(analysis: Analysis) -> str:
    """One row per (prompt, kernels, batch size, placement); the last a column where it varies."""
    if len(analysis.run.experiment.placements) == 1:
        return _csv(CONDITION_COLUMNS, _condition_rows(analysis.groups))
    places = [row.placement for group in analysis.groups for row in group.by_batch_size]
    rows = zip(_condition_rows(analysis.groups), places, strict=True)
    return _csv((*CONDITION_COLUMNS, "placement"), ((*row, place) for row, place in rows))


def variants_csv(analysis: Analysis) -> str:
    """One row per (prompt, kernels, variant), most common first."""
    rows = (row for group in analysis.groups for row in _variant_rows(group))
    return _csv(VARIANT_COLUMNS, rows)


def cell(value: Any) -> Any:
    """A value as it may stand in a cell: text without hidden characters and never a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return "" if value is None else value
    shown, more = cap(value, CELL_LIMIT)
    shown = INVISIBLE.sub(_shown_in_cell, shown) + more
    return "'" + shown if shown.lstrip(" ").startswith(FORMULA_STARTS) else shown


def _shown_in_cell(match: Any) -> str:
    char = match.group()
    return char if char == "\n" else char_name(char)


def _condition_rows(groups: Sequence[Group]) -> Iterator[tuple[Any, ...]]:
    for group in groups:
        for row in group.by_batch_size:
            yield (
                condition_id(group.prompt_index, group.kernels, row.batch_size, row.placement),
                group.prompt,
                group.kernels,
                row.batch_size,
                row.asked,
                row.completions,
                row.failed,
                row.distinct,
                row.most_common,
                row.differ_from_reference,
                row.observed_rows_max,
                row.observed_rows_mean,
                row.tokens_per_second,
                row.relative_cost,
                row.exact_repeats_differ,
            )


def _variant_rows(group: Group) -> Iterator[tuple[Any, ...]]:
    flips = {found.variant.fingerprint: found.flip for found in group.divergences}
    for line in group.variants:
        flip = flips.get(line.variant.fingerprint)
        yield (
            group.prompt,
            group.kernels,
            line.rank,
            line.count,
            line.share,
            line.is_reference,
            line.first_divergence,
            " ".join(map(str, line.batch_sizes)),
            flip.kind if flip else None,
            flip.reference_gap if flip else None,
            flip.noise if flip else None,
            line.variant.fingerprint,
            line.variant.text,
        )


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(value) for value in row] for row in rows)
    return buffer.getvalue()
