"""The parsed answers in the Markdown report."""

from __future__ import annotations

from collections.abc import Iterator

from detcheck.report.answers import AnswersView, FlippedItem
from detcheck.report.markdown_parts import code, table
from detcheck.text import count

MAX_FLIPPED = 20
MAX_ANSWERS = 4
"""Answers of an item that are named."""


def answers_blocks(view: AnswersView) -> Iterator[str]:
    """The section: findings, a row for each kernels setting, the score by load, and the flips."""
    yield "## Does the answer change?"
    yield "\n".join(f"- {kernels}: {sentence}" for kernels, sentence in view.sentences)
    headings = (
        *("kernels", "answer flips", "95 % interval", "worst to best score", "load moves it"),
        *("standard error", "Std@Acc", "TARr@N", "TARa@N", "Div_Index", "Avg_Std@top1_prob"),
        "not parsed",
    )
    rows = [
        (
            *(row.kernels, f"**{row.flips}**", row.interval, row.scores, row.moved),
            *(row.standard_error, row.accuracy_std, row.raw_agreement, row.parsed_agreement),
            *(row.div_index, row.top1_std, row.unparsed),
        )
        for row in view.rows
    ]
    yield table(headings, rows, numeric=True)
    yield f"Answers were parsed by {code(view.parser)}; scores are points of 100."
    if view.by_load:
        sizes = (f"batch {size}" for size in view.batch_sizes)
        by_load = [(kernels, *scores) for kernels, scores in view.by_load]
        yield table(("score", *sizes), by_load, numeric=True)
    yield from _flips(view)
    for kernels, texts in view.examples:
        shown = ", ".join(code(text.strip(), 80) for text in texts)
        yield f"{kernels}: the parser found no answer in {shown}."


def _flips(view: AnswersView) -> Iterator[str]:
    if not view.flipped:
        return
    yield "### Items whose answer changed"
    rows = [
        (code(item.name, 40), code(item.prompt, 80), item.kernels, _right(item), _answers(item))
        for item in view.flipped[:MAX_FLIPPED]
    ]
    yield table(("item", "prompt", "kernels", "right", "answers"), rows)
    if hidden := view.flipped[MAX_FLIPPED:]:
        yield f"… {count(len(hidden), 'more item')}: answers.csv lists them all."


def _right(item: FlippedItem) -> str:
    return code(item.expected, 40) if item.expected else "–"


def _answers(item: FlippedItem) -> str:
    shown = [f"{code(answer, 60)} {times}" for answer, times in item.answers[:MAX_ANSWERS]]
    more = len(item.answers) - MAX_ANSWERS
    return "; ".join((*shown, f"{more} more") if more > 0 else shown)
