"""The summary for a terminal, with which `detcheck run` ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group
from rich.measure import Measurement
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
SPARE_COLUMNS = (6, 4, 3, 5, 7)
"""Left out one after the other in a narrow terminal: tokens/s, where answers diverge, how often the
most common came, flips, cost. Counted from `came back`, which is 1."""
UNITS = {"token": "token", "character": "char"}


def summary_table(analysis: Analysis) -> Group:
    """The prompts, then a table of one row per (prompt, kernels), readable at 80 columns.

    The most varied prompts come first, each with its number in the run. Prompts are never read as
    markup.
    """
    rows = overview(analysis)
    several = len(rows) > 1
    shown = rows[:MAX_PROMPTS]
    seeds = any(row.several_seeds for row in rows)
    third = f"for one\n{rows[0].groups[0].sample}" if seeds else "most\ncommon"
    table = FittingTable(third, _caption(analysis, len(rows)))
    for row in shown:
        for group in row.groups:
            numbered = str(row.prompt_index + 1) if group is row.groups[0] else ""
            table.rows.append([Text(numbered if several else ""), *_cells(group, seeds=seeds)])
    return Group(*(_prompt(row, numbered=several) for row in shown), table)


@dataclass
class FittingTable:
    """The table of the summary, without `SPARE_COLUMNS` if the terminal is too narrow for them."""

    third: str
    """Heading of the column of the most common answer."""
    caption: str
    rows: list[list[Text]] = field(default_factory=list)
    """The number of the prompt or nothing, then the cells of `_cells`."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The widest table of which no word has to be cut; else the narrowest."""
        unlimited = options.update(width=10_000)
        for number_left_out in range(len(SPARE_COLUMNS) + 1):
            table = self._without(SPARE_COLUMNS[:number_left_out])
            if Measurement.get(console, unlimited, table).minimum <= options.max_width:
                break
        yield table

    def _without(self, left_out: Sequence[int]) -> Table:
        table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), caption_justify="left")
        table.caption = Text(self.caption, style="dim")
        several = any(row[0] for row in self.rows)
        if several:
            table.add_column("", justify="right")
        table.add_column("kernels", max_width=KERNELS_CELLS, no_wrap=True)
        columns = ("came\nback", "distinct", self.third, "diverge\nat", "flips", "tokens/s", "cost")
        kept = [place for place in range(1, len(columns) + 1) if place not in left_out]
        for place in kept:
            heading = columns[place - 1]
            is_flips = heading == "flips"
            table.add_column(
                heading,
                justify="left" if is_flips else "right",
                no_wrap=is_flips or heading == "cost",
            )
        for number_of, kernels, *cells in self.rows:
            row = (kernels, *(cells[place - 1] for place in kept))
            table.add_row(*((number_of,) if several else ()), *row)
        return table


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
