"""The report as Markdown that renders on a pull request.

Model output stands in `<code>` with entities where markup could begin, or in a fence longer than
any in it: so nothing in it is markup, a table cell, a link, a mention or mathematics.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from detcheck.analysis.results import Analysis
from detcheck.report.answers import BAD, GOOD, OPEN, six_answers
from detcheck.report.checks import bounds, checks
from detcheck.report.glossary import GLOSSARY
from detcheck.report.prefix_tree import BRANCH, Branch
from detcheck.report.reproduce import command
from detcheck.report.text import came_back, clip, factor, number, percent, tail
from detcheck.report.view import (
    BatchLine,
    GroupView,
    Limits,
    PromptView,
    about,
    environment_rows,
    flip_reason,
    headline,
    prompt_views,
)
from detcheck.text import count, escape_markdown, one_line

LIMITS = Limits(leaves=20, depth=8, children=8, variants=12, partings=8)
MARKS = {GOOD: "✅", BAD: "❌", OPEN: "▫️"}
MOST_INSTEAD = 10
CELLS = 64
"""Width of the words in the prefix tree."""


def render(
    analysis: Analysis, figures: Mapping[int, Sequence[str]], probes: Sequence[str] = ()
) -> str:
    """The whole document; `figures` are file names by prompt index, relative to it, `probes` those
    of the ops that lie behind them."""
    blocks = [f"# {headline(analysis)}", escape_markdown(about(analysis))]
    blocks.append(_answers(analysis))
    for view in prompt_views(analysis, LIMITS):
        blocks += _prompt(view, figures.get(view.prompt_index, ()))
    if probes:
        blocks += ["## Which op is it?", *(f"![{_title(name)}]({name})" for name in probes)]
    blocks += ["## Can I trust this result?", _checks(analysis)]
    blocks += [
        "## Run it again",
        fenced(command(analysis.run.experiment, analysis.run.target), "sh"),
    ]
    blocks.append(_environment(analysis))
    words = "\n\n".join(f"**{word}**: {meaning}" for word, meaning in GLOSSARY)
    blocks.append(_folded("The words", words))
    return "\n\n".join(blocks) + "\n"


def code(text: str, limit: int = 200) -> str:
    """Untrusted text on one line as inline code, in which nothing is markup."""
    return f"<code>{escape_markdown(one_line(text, limit))}</code>"


def fenced(text: str, language: str = "") -> str:
    """`text` in a fence longer than any run of backticks in it, hidden characters shown."""
    lines = "\n".join(one_line(line) for line in text.split("\n"))
    longest = max((len(run) for run in re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{lines}\n{fence}"


def _answers(analysis: Analysis) -> str:
    rows = [
        (
            MARKS[one.mark],
            one.question,
            f"**{one.answer}**",
            escape_markdown(one_line(one.detail, 240)),
        )
        for one in six_answers(analysis)
    ]
    return _table(("", "question", "answer", ""), rows)


def _prompt(view: PromptView, figures: Sequence[str]) -> Iterator[str]:
    yield f"## {code(view.prompt, 160)}"
    yield view.sentence
    for group in view.groups:
        if group.root is not None and group.distinct > 1:
            yield f"### Where the answers part, {group.kernels}"
            yield fenced("\n".join(tree_lines(group)), "text")
    if figures:
        yield "Figures: " + ", ".join(f"[{_title(name)}]({name})" for name in figures)
    yield "### By batch size"
    yield _batch_table(view.by_batch_size)
    for group in view.groups:
        if group.distinct > 1:
            yield _folded(f"Variants, {group.kernels}", _variants(group))
            yield _folded(f"Divergences, {group.kernels}", _divergences(group))


def tree_lines(group: GroupView) -> Iterator[str]:
    """The prefix tree drawn with lines, one branch a line."""
    root = group.root
    assert root is not None
    width = len(f"{root.count:,}")
    yield f"{root.count:,} {tail(root.text, 2 * CELLS) or '(nothing shared)'}"
    yield from _branch_lines(root, "", width)


def _branch_lines(parent: Branch, indent: str, width: int) -> Iterator[str]:
    for branch in parent.children:
        last = branch is parent.children[-1]
        words = branch.label if branch.kind != BRANCH else clip(branch.text.strip(), CELLS)
        more = f" ({count(branch.variants, 'answer')})" if branch.collapsed else ""
        yield f"{indent}{'└' if last else '├'}─ {branch.count:>{width},}  {words}{more}"
        yield from _branch_lines(branch, indent + ("   " if last else "│  "), width)


def _batch_table(lines: Sequence[BatchLine]) -> str:
    placed = any(line.row.placement for line in lines)
    headings = ("batch size", *(("where",) if placed else ()), "kernels", "came back", "distinct",
                "most common", "observed batch", "tokens/s", "time a token")  # fmt: skip
    rows = [_batch_row(line, placed=placed) for line in lines]
    return _table(headings, rows, numeric=True)


def _batch_row(line: BatchLine, *, placed: bool) -> tuple[str, ...]:
    row = line.row
    return (
        str(row.batch_size),
        *((row.placement,) if placed else ()),
        line.kernels,
        came_back(row.completions, row.asked),
        f"**{row.distinct:,}**",
        f"{row.most_common:,}",
        str(row.observed_rows_max or "–"),
        number(row.tokens_per_second),
        factor(row.relative_cost),
    )


def _variants(group: GroupView) -> str:
    rows = []
    for line in group.variants:
        counted = line.counted
        place = "–" if counted.first_divergence is None else f"{counted.first_divergence:,}"
        words = code((line.before + " " + line.excerpt).strip(), 140)
        share = percent(counted.share)
        rows.append((str(counted.rank), f"{counted.count:,}", share, place, words))
    table = _table(("rank", "count", "share", f"parts at {group.unit}", "answer"), rows)
    if group.hidden_variants:
        hidden = count(group.hidden_variants, "more variant")
        table += f"\n\n… {hidden}: `detcheck report --format csv` lists them all."
    return table


def _divergences(group: GroupView) -> str:
    blocks = []
    for place in group.partings:
        lines = [f"**{group.unit} {place.position:,}** … {code(place.context)}", ""]
        lines.append(f"- reference: {code(place.reference_piece or '(ends here)')}")
        for one in place.instead[:MOST_INSTEAD]:
            why = f"{one.flip.kind}{flip_reason(one.flip)}"
            lines.append(f"- {one.count:,}: {code(one.piece or '(ends here)')} ({why})")
        if len(place.instead) > MOST_INSTEAD:
            lines.append(f"- … {count(len(place.instead) - MOST_INSTEAD, 'more way')} to go on")
        blocks.append("\n".join(lines))
    if group.hidden_partings:
        blocks.append(f"… {count(group.hidden_partings, 'more place')}.")
    return "\n\n".join(blocks)


def _checks(analysis: Analysis) -> str:
    marks = {True: MARKS[GOOD], False: MARKS[BAD], None: MARKS[OPEN]}
    lines = [(marks[check.passed], check.title, check.sentence) for check in checks(analysis)]
    lines += [(MARKS[OPEN], title, sentence) for title, sentence in bounds(analysis)]
    return "\n".join(
        f"- {mark} {title}: {escape_markdown(one_line(sentence, 600))}"
        for mark, title, sentence in lines
    )


def _environment(analysis: Analysis) -> str:
    rows = [
        (escape_markdown(one_line(name, 80)), code(value, 200))
        for name, value in environment_rows(analysis.run.environment)
    ]
    return _folded("Environment", _table(("", ""), rows))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: bool = False) -> str:
    rule = "---:" if numeric else "---"
    lines = [headings, [rule] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _title(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".svg").replace("_", " ")
