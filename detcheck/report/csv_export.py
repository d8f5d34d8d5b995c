"""The tables of an analysis as CSV: conditions, variants and branchings.

Spreadsheets run cells that look like formulas, so text that begins like one gets a leading
apostrophe (OWASP's advice on CSV injection).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detcheck.analysis.answer_rows import answers_frame
from detcheck.analysis.answers import stability_if_parsed
from detcheck.analysis.results import Analysis
from detcheck.text import HIDDEN, cap, stand_in

if TYPE_CHECKING:
    import pandas as pd

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
CELL_LIMIT = 32_000
"""Spreadsheets cut cells at 32,767 characters without a word."""
FLOAT_FORMAT = "%.6g"


def csv_files(analysis: Analysis, answer: str | None = None) -> Mapping[str, str]:
    """The text of every CSV file by its name.

    `answers.csv` is among them if `answer` or the experiment names a parser of answers.
    Rows and columns are those of `analysis.frame()`, `.variants_frame()` and
    `.branchings_frame()`. A column `placement` that says nothing is left out.
    """
    conditions = analysis.frame()
    if not conditions["placement"].any():
        conditions = conditions.drop(columns="placement")
    stabilities = stability_if_parsed(analysis, answer)
    answers = {"answers.csv": to_csv(answers_frame(stabilities))} if stabilities else {}
    return {
        "conditions.csv": to_csv(conditions),
        "variants.csv": to_csv(analysis.variants_frame()),
        "branchings.csv": to_csv(analysis.branchings_frame()),
        **answers,
    }


def to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, its text made safe for a spreadsheet."""
    text = frame.select_dtypes("object").columns
    frame = frame.assign(**{name: frame[name].map(cell) for name in text})
    return frame.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n")


def cell(value: Any) -> Any:
    """A value as it may stand in a cell: text without hidden characters and never a formula."""
    if not isinstance(value, str):
        return value
    shown, more = cap(value, CELL_LIMIT)
    shown = HIDDEN.sub(_shown_in_cell, shown) + more
    return "'" + shown if shown.lstrip(" ").startswith(FORMULA_STARTS) else shown


def _shown_in_cell(match: re.Match[str]) -> str:
    character = match.group()
    return character if character == "\n" else stand_in(character)
