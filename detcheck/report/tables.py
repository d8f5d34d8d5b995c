"""The summary for a terminal, with which `detcheck run` ends."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from detcheck.analysis.results import CONFIDENT, FLIP_KINDS, Analysis
from detcheck.report.checks import batches
from detcheck.report.costs import Cost
from detcheck.report.overview import GroupRow, PromptRow, overview
from detcheck.report.text import came_back, clip, factor, number, of_kind, short_kernels
from detcheck.text import count

KERNELS_CELLS = 16
PROMPT_CELLS = 72
ID_CELLS = 24
MAX_PROMPTS = 30
"""Prompts in the table; the report has them all."""
FLIP_STYLES = {CONFIDENT: "bold red"}
UNITS = {"token": "token", "character": "char"}


def summary_table(analysis: Analysis) -> Group:
    """The prompts, then a table of one row per (prompt, kernels), readable at 80 columns.

    The most varied prompts come first, each with its number in the run. Prompts are never read as
    markup.
    """
    rows = overview(analysis)
    several = len(rows) > 1
    shown = rows[:MAX_PROMPTS]
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = Text(_caption(analysis, len(rows)), style="dim")
    if several:
        table.add_column("", justify="right")
    table.add_column("kernels", max_width=KERNELS_CELLS, no_wrap=True)
    seeds = any(row.several_seeds for row in rows)
    third = f"for one\n{rows[0].groups[0].sample}" if seeds else "most\ncommon"
    for heading in ("came\nback", "distinct", third, "diverge\nat"):
        table.add_column(heading, justify="right")
    table.add_column("flips", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    table.add_column("cost", justify="right", no_wrap=True)
    for row in shown:
        for group in row.groups:
            number_of = [Text(str(row.prompt_index + 1) if group is row.groups[0] else "")]
            table.add_row(*(number_of if several else []), *_cells(group, seeds=seeds))
    return Group(*(_prompt(row, numbered=several) for row in shown), table)


def _prompt(row: PromptRow, *, numbered: bool) -> Text:
    name = f"{row.prompt_index + 1}  " if numbered else ""
    identifier = f"{clip(row.id, ID_CELLS)}  " if row.id is not None else ""
    return Text(f"{name}{identifier}“{clip(row.prompt, PROMPT_CELLS)}”", style="bold")


def _caption(analysis: Analysis, num_prompts: int) -> str:
    hidden = num_prompts - MAX_PROMPTS
    more = f"… {count(hidden, 'more prompt')} with fewer answers: see the report\n"
    differ = sum(group.repeats_differ or 0 for group in analysis.groups)
    again = f"\nequal trials, sent again, gave {count(differ, 'other answer')}" if differ else ""
    return (more if hidden > 0 else "") + batches(analysis, "\n") + again


def _cells(group: GroupRow, *, seeds: bool) -> list[Text]:
    style = "bold green" if group.distinct_within_seed == 1 else "bold yellow"
    position = group.first_divergence
    return [
        Text(clip(short_kernels(group.kernels), KERNELS_CELLS)),
        Text(came_back(group.completions, group.asked)),
        Text(f"{group.distinct:,}", style="" if seeds else style),
        Text(f"{group.distinct_within_seed:,}", style=style)
        if seeds
        else Text(f"{group.most_common:,}"),
        Text("–" if position is None else f"{UNITS[group.unit]} {position:,}"),
        _flips(group),
        Text(number(group.tokens_per_second)),
        _cost(group.cost),
    ]


def _flips(group: GroupRow) -> Text:
    """One line for each kind of flip that occurred."""
    lines = Text()
    for kind in FLIP_KINDS:
        if flips := group.flips.get(kind, 0):
            lines.append("\n" if lines else "")
            lines.append(of_kind(flips, kind), style=FLIP_STYLES.get(kind, ""))
    return lines or Text("–")


def _cost(cost: Cost | None) -> Text:
    """The cost, and below it the lowest and the highest if they differ."""
    if cost is None:
        return Text("–")
    text = Text(factor(cost.mean))
    if cost.spread:
        text.append(f"\n{cost.low:.2f}–{cost.high:.2f}", style="dim")
    return text
