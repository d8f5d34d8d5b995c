"""The report as Markdown that renders on a pull request.

Model output stands in `<code>` with entities where markup could begin, or in a fence longer than
any in it: so nothing in it is markup, a table cell, a link, a mention or mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from detcheck.report.answers_markdown import answers_blocks
from detcheck.report.card import BAD, GOOD, OPEN, Card
from detcheck.report.checks import Bound, TrustCheck
from detcheck.report.costs import cost_range
from detcheck.report.glossary import GLOSSARY
from detcheck.report.markdown_parts import code, fenced, folded, table
from detcheck.report.overview import PromptRow
from detcheck.report.prefix_tree import BRANCH, Branch, TreeLimits, prune
from detcheck.report.prompt_view import (
    AnswersBeside,
    BatchLine,
    GroupView,
    PromptView,
    flip_reason,
)
from detcheck.report.seeds import SeedsView
from detcheck.report.text import came_back, clip, factor, flip_counts, number, percent, tail
from detcheck.report.view import ReportView
from detcheck.report.word_diff import DiffPart
from detcheck.text import count, escape_markdown, one_line

TREE = TreeLimits(leaves=20, depth=8, children=8)
MAX_SECTIONS = 5
"""Prompts that get a section, most varied first; the table has more."""
MAX_TABLE_ROWS = 100
MAX_VARIANTS = 12
MAX_PLACES = 8
MAX_CONTINUATIONS = 10
ENDS = "(ends here)"
MARKS = {GOOD: "✅", BAD: "❌", OPEN: "▫️"}
LEGEND = "✅ as it should be · ❌ a difference, or a check that failed · ▫️ neither"
CELLS = 64
"""Width of the words in the prefix tree."""
DIFF_CHARACTERS = 160
"""Of each stretch in which the cure's answer differs from stock's, or agrees with it."""
MAX_STRETCHES = 24


def render(
    view: ReportView, figures: Mapping[int, Sequence[str]], probes: Sequence[str] = ()
) -> str:
    """The whole document.

    `figures` are file names by prompt index, relative to the document; `probes` those of
    `detcheck ops` and `detcheck trace`.
    """
    several = len(view.prompts) > 1
    blocks = [f"# {view.headline}", escape_markdown(view.about), _cards(view.cards), LEGEND]
    if several:
        blocks += ["## Prompts, most varied first", *_prompt_table(view)]
    if view.answers is not None:
        blocks += answers_blocks(view.answers)
    for prompt in view.prompts[:MAX_SECTIONS]:
        if not (several and prompt.row.quiet):
            blocks += _prompt(prompt, figures.get(prompt.prompt_index, ()))
    if probes:
        blocks += ["## Which op is it?", *(f"![{_title(name)}]({name})" for name in probes)]
    bounds = () if several else view.prompts[0].bounds
    blocks += ["## Can I trust this result?", _checks(view.checks, bounds)]
    blocks += ["## Run it again", fenced(view.command, "sh")]
    blocks.append(_environment(view.environment))
    words = "\n\n".join(f"**{word}**: {meaning}" for word, meaning in GLOSSARY)
    blocks.append(folded("The words", words))
    return "\n\n".join(blocks) + "\n"


def _cards(cards: Sequence[Card]) -> str:
    rows = [
        (
            MARKS[card.mark],
            card.question,
            f"**{card.answer}**",
            escape_markdown(one_line(card.detail, 240)),
        )
        for card in cards
    ]
    return table(("", "question", "answer", ""), rows)


def _prompt_table(view: ReportView) -> Iterator[str]:
    headings = (
        "no.", "prompt", *(f"distinct, {name}" for name in view.kernels),
        "first divergence", "flips", "two agree", "time per token",
    )  # fmt: skip
    yield table(headings, [_prompt_row(row) for row in view.rows[:MAX_TABLE_ROWS]])
    if hidden := view.rows[MAX_TABLE_ROWS:]:
        yield f"… {count(len(hidden), 'more prompt')}, with fewer answers each."


def _prompt_row(row: PromptRow) -> tuple[str, ...]:
    position = row.first_divergence
    return (
        str(row.prompt_index + 1),
        code(clip(row.prompt, 60)),
        *(f"**{one.distinct:,}** of {came_back(one.completions, one.asked)}" for one in row.groups),
        "–" if position is None else f"{row.unit} {position:,}",
        flip_counts(row.flips) or "–",
        percent(row.agreement),
        cost_range(row.cost),
    )


def _prompt(view: PromptView, figures: Sequence[str]) -> Iterator[str]:
    yield f"## {code(view.prompt, 160)}"
    yield " ".join(filter(None, (view.sentence, view.reservation)))
    for group in view.groups:
        if group.tree is not None and group.distinct > 1:
            yield f"### Where the answers diverge, {group.kernels}"
            yield fenced("\n".join(tree_lines(prune(group.tree, TREE))), "text")
    if view.beside is not None:
        yield "### The cure's answer beside stock's"
        yield from _beside(view.beside)
    if figures:
        yield "Figures: " + ", ".join(f"[{_title(name)}]({name})" for name in figures)
    if view.seeds is not None:
        yield f"### {view.seeds.sample.capitalize()}s and loads"
        yield "\n".join(f"- {kernels}: {words}." for kernels, words in view.seeds.sentences)
        yield _seeds_table(view.seeds)
    yield "### By batch size"
    yield _batch_table(view.by_batch_size)
    for group in view.groups:
        if group.distinct > 1:
            yield folded(f"Variants, {group.kernels}", _variants(group))
            yield folded(f"Branchings, {group.kernels}", _branchings(group))


def tree_lines(root: Branch) -> Iterator[str]:
    """The prefix tree drawn with lines, one branch a line."""
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


def _beside(beside: AnswersBeside) -> Iterator[str]:
    """Which answer the cure gave, and a fence of the stretches that differ, `-` stock's."""
    yield escape_markdown(beside.sentence)
    if not beside.diff.equal:
        lines = [f"--- {beside.left_name}", f"+++ {beside.right_name}"]
        stretches = list(_stretches(beside.diff.left, beside.diff.right))
        lines += stretches[:MAX_STRETCHES]
        if len(stretches) > MAX_STRETCHES:
            lines.append(f"  … {count(len(stretches) - MAX_STRETCHES, 'more line')}")
        yield fenced("\n".join(lines), "diff")


def _stretches(left: Sequence[DiffPart], right: Sequence[DiffPart]) -> Iterator[str]:
    """Shared stretches, and between them the words that only one answer has."""
    ours, theirs = list(_by_shared(left)), list(_by_shared(right))
    for (own, shared), (other, _) in zip_longest(ours, theirs, fillvalue=("", "")):
        if own:
            yield f"- {one_line(own.strip(), DIFF_CHARACTERS)}"
        if other:
            yield f"+ {one_line(other.strip(), DIFF_CHARACTERS)}"
        if shared:
            yield f"  {tail(shared, DIFF_CHARACTERS)}"


def _by_shared(parts: Sequence[DiffPart]) -> Iterator[tuple[str, str]]:
    """(words that only this answer has, the shared stretch after them), in order."""
    own = ""
    for part in parts:
        if part.shared:
            yield own, part.text
            own = ""
        else:
            own += part.text
    if own:
        yield own, ""


def _seeds_table(seeds: SeedsView) -> str:
    """Different answers to each seed at each batch size, and over all loads."""
    headings = (
        "kernels",
        seeds.sample,
        *(f"batch {size}" for size in seeds.batch_sizes),
        "all loads",
    )
    rows = [
        (
            row.kernels,
            str(row.seed),
            *(str(cell.distinct or "–") for cell in row.cells),
            f"**{row.distinct}**",
        )
        for row in seeds.rows
    ]
    return table(headings, rows, numeric=True)


def _batch_table(lines: Sequence[BatchLine]) -> str:
    placed = any(line.row.placement for line in lines)
    headings = ("batch size", *(("where",) if placed else ()), "kernels", "came back", "distinct",
                "most common", "observed batch", "tokens per second", "time per token")  # fmt: skip
    rows = [_batch_row(line, placed=placed) for line in lines]
    return table(headings, rows, numeric=True)


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
    for line in group.variants[:MAX_VARIANTS]:
        counted = line.counted
        position = "–" if counted.first_divergence is None else f"{counted.first_divergence:,}"
        words = code(line.before + (line.rest or f" {ENDS}"), 140)
        share = percent(counted.share)
        rows.append((str(counted.rank), f"{counted.count:,}", share, position, words))
    listed = table(("rank", "count", "share", f"diverges at {group.unit}", "answer"), rows)
    if hidden := group.variants[MAX_VARIANTS:]:
        listed += f"\n\n… {count(len(hidden), 'more variant')}: variants.csv lists them all."
    return listed


def _branchings(group: GroupView) -> str:
    blocks = []
    for place in group.places[:MAX_PLACES]:
        lines = [f"**{group.unit} {place.position:,}** … {code(place.context)}", ""]
        lines.append(f"- {place.common_completions:,}: {code(place.common_piece or ENDS)}")
        for one in place.continuations[:MAX_CONTINUATIONS]:
            why = f"{one.flip.kind}{flip_reason(one.flip)}"
            lines.append(f"- {one.completions:,}: {code(one.piece or ENDS)} ({why})")
        if hidden := place.continuations[MAX_CONTINUATIONS:]:
            lines.append(f"- … {count(len(hidden), 'more way')} to go on")
        blocks.append("\n".join(lines))
    if hidden_places := group.places[MAX_PLACES:]:
        blocks.append(f"… {count(len(hidden_places), 'more place')}.")
    return "\n\n".join(blocks)


def _checks(checks: Sequence[TrustCheck], bounds: Sequence[Bound]) -> str:
    marks = {True: MARKS[GOOD], False: MARKS[BAD], None: MARKS[OPEN]}
    lines = [(marks[check.passed], check.title, check.sentence) for check in checks]
    lines += [(MARKS[OPEN], bound.kernels, bound.sentence) for bound in bounds]
    return "\n".join(
        f"- {mark} {title}: {escape_markdown(one_line(sentence, 600))}"
        for mark, title, sentence in lines
    )


def _environment(environment: Sequence[tuple[str, str]]) -> str:
    rows = [(escape_markdown(one_line(name, 80)), code(value, 200)) for name, value in environment]
    return folded("Environment", table(("", ""), rows))


def _title(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".svg").replace("_", " ")
