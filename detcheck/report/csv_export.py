"""The report as CSV: a row a condition, and a row a variant.

Spreadsheets run cells that look like formulas, so text that begins like one gets a leading
apostrophe (OWASP's advice on CSV injection).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from io import StringIO
from typing import Any

from detcheck.analysis.results import Analysis, BatchSizeRow, Group
from detcheck.grid import Condition
from detcheck.text import HIDDEN, cap, stand_in

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
CELL_LIMIT = 32_000
"""Spreadsheets cut cells at 32,767 characters without a word."""

ROW_COLUMNS = tuple(
    field.name
    for field in fields(BatchSizeRow)
    if field.name not in ("placement", "failures", "seed", "distinct_within_seed")
)
"""The condition's name says where it ran; failures by kind are no single value."""
CONDITION_COLUMNS = ("condition", "prompt", "kernels", *ROW_COLUMNS)
VARIANT_COLUMNS = (
    "prompt", "kernels", "rank", "count", "share", "is_reference", "first_divergence",
    "batch_sizes", "flip", "reference_gap", "variant_gap", "noise", "fingerprint", "text",
)  # fmt: skip


def conditions_csv(analysis: Analysis) -> str:
    """One row per (prompt, kernels, batch size, placement); the last a column where it varies."""
    if len(analysis.run.target.placements) == 1:
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
    shown = HIDDEN.sub(_shown_in_cell, shown) + more
    return "'" + shown if shown.lstrip(" ").startswith(FORMULA_STARTS) else shown


def _shown_in_cell(match: re.Match[str]) -> str:
    character = match.group()
    return character if character == "\n" else stand_in(character)


def _condition_rows(groups: Sequence[Group]) -> Iterator[tuple[Any, ...]]:
    for group in groups:
        for row in group.by_batch_size:
            condition = Condition(
                group.prompt_index, group.kernels, row.batch_size, row.asked, row.placement
            ).condition_id
            values = (getattr(row, name) for name in ROW_COLUMNS)
            yield (condition, group.prompt, group.kernels, *values)


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
            flip.variant_gap if flip else None,
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
