"""The summary for a terminal, with which `detcheck run` ends."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from detcheck.analysis.results import CONFIDENT, FLIP_KINDS, Analysis, Group
from detcheck.report.checks import batches
from detcheck.report.text import came_back, clip, factor, number

PROMPT_CELLS = 22
TITLE_CELLS = 60
FLIP_STYLES = {CONFIDENT: "bold red"}


def summary_table(analysis: Analysis) -> Table:
    """One row per (prompt, kernels), readable at 80 columns; prompts are never read as markup.

    With several prompts, each has a line of its own above its rows.
    """
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = Text(batches(analysis, "\n"), style="dim")
    table.add_column("kernels", max_width=PROMPT_CELLS, no_wrap=True)
    for heading in ("came\nback", "distinct", "most\ncommon", "parts at\ntoken"):
        table.add_column(heading, justify="right")
    table.add_column("flips", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    table.add_column("cost", justify="right", no_wrap=True)
    prompt_index = None
    several = len({group.prompt_index for group in analysis.groups}) > 1
    if not several and analysis.groups:
        table.title, table.title_justify = _prompt(analysis.groups[0], TITLE_CELLS), "left"
    for group in analysis.groups:
        if several and group.prompt_index != prompt_index:
            prompt_index = group.prompt_index
            table.add_row(_prompt(group, PROMPT_CELLS))
        table.add_row(*_cells(group))
    return table


def _prompt(group: Group, cells: int) -> Text:
    return Text(f"“{clip(group.prompt, cells - 2)}”", style="bold")


def _cells(group: Group) -> list[Text]:
    distinct_style = "bold green" if group.distinct == 1 else "bold yellow"
    position = group.first_divergence
    return [
        Text(group.kernels),
        Text(came_back(group.completions, group.asked)),
        Text(f"{group.distinct:,}", style=distinct_style),
        Text(f"{group.most_common:,}"),
        Text("–" if position is None else f"{position:,}"),
        _flips(group),
        Text(number(group.tokens_per_second)),
        Text(factor(group.relative_cost)),
    ]


def _flips(group: Group) -> Text:
    """One kind of flip a line, those that occurred."""
    lines = Text()
    for kind in FLIP_KINDS:
        number_of_kind = group.flips.get(kind, 0)
        if number_of_kind:
            lines.append("\n" if lines else "")
            lines.append(f"{number_of_kind} {kind}", style=FLIP_STYLES.get(kind, ""))
    return lines or Text("–")
