"""The parsed answers for a terminal, below the table with which `detcheck run` ends."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from detcheck.report.answers import AnswersView, FlippedItem
from detcheck.report.text import clip, short_kernels
from detcheck.text import count, one_line

MAX_FLIPPED = 8
"""Items that are named; --json and the report have them all."""
MAX_ANSWERS = 3
MAX_EXAMPLES = 3


def answers_table(view: AnswersView) -> Group:
    """A row for each kernels setting, the findings, and the items that flip with their answers."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.title = f"answers, parsed by {view.parser}"
    table.title_justify = "left"
    table.add_column("kernels", max_width=16, no_wrap=True)
    for heading in (
        *("answer\nflips", "score by load,\nworst to best", "load\nmoves it", "std. error\nof set"),
        *("TARr@N", "TARa@N", "not\nparsed"),
    ):
        table.add_column(heading, justify="right")
    for row in view.rows:
        table.add_row(
            Text(clip(short_kernels(row.kernels), 16)),
            *(row.flips, row.scores, row.moved, row.standard_error),
            *(row.raw_agreement, row.parsed_agreement, row.unparsed),
        )
    lines = [Text(f"{kernels}: {sentence}") for kernels, sentence in view.sentences]
    lines += [_flipped_line(item) for item in view.flipped[:MAX_FLIPPED]]
    if hidden := view.flipped[MAX_FLIPPED:]:
        line = f"… {count(len(hidden), 'more item')} whose answer changed: see the report"
        lines.append(Text(line, style="dim"))
    for kernels, texts in view.examples:
        shown = ", ".join(f"“{clip(text.strip(), 48)}”" for text in texts[:MAX_EXAMPLES])
        lines.append(Text(f"{kernels}: no answer was found in {shown}", style="dim"))
    return Group(Text(""), table, *lines)


def _flipped_line(item: FlippedItem) -> Text:
    """`stock q7, right is 42: "42" 40 times, at batch size 1; "41" 8 times, at …`."""
    right = f", right is {one_line(item.expected, 24)}" if item.expected else ""
    answers = "; ".join(f"{answer} {times}" for answer, times in item.answers[:MAX_ANSWERS])
    more = len(item.answers) - MAX_ANSWERS
    tail = f"; and {count(more, 'more answer')}" if more > 0 else ""
    return Text(f"{short_kernels(item.kernels)} {one_line(item.name, 24)}{right}: {answers}{tail}")
