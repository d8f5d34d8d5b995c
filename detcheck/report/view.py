"""What a report shows of an analysis, prompt by prompt; HTML and Markdown only lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE, lacking
from detcheck.analysis.results import Analysis, BatchSizeRow, Flip, Group, VariantCount
from detcheck.environment import settings
from detcheck.kernels.settings import STOCK
from detcheck.report.answers import beside_stock, control_groups, cure_groups
from detcheck.report.partings import Parting, partings
from detcheck.report.prefix_tree import Branch, prune
from detcheck.report.text import clip, number, tail
from detcheck.text import count


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each thing is shown."""

    leaves: int
    depth: int
    children: int
    variants: int
    partings: int


@dataclass(frozen=True, slots=True)
class VariantLine:
    """One variant, with the words that tell it from the reference."""

    counted: VariantCount
    before: str
    """The last words it shares with the reference; empty for the reference."""
    excerpt: str


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A row of the table by batch size."""

    kernels: str
    row: BatchSizeRow
    again: bool
    """Whether the row before has the same batch size."""


@dataclass(frozen=True, slots=True)
class GroupView:
    """One prompt under one kernels setting."""

    kernels: str
    distinct: int
    unit: str
    root: Branch | None
    shared: int
    """Tokens that every completion begins with."""
    trunk: str
    variants: tuple[VariantLine, ...]
    hidden_variants: int
    partings: tuple[Parting, ...]
    hidden_partings: int


@dataclass(frozen=True, slots=True)
class PromptView:
    """One prompt under every kernels setting."""

    prompt_index: int
    prompt: str
    sentence: str
    groups: tuple[GroupView, ...]
    by_batch_size: tuple[BatchLine, ...]
    listed: tuple[GroupView, ...]
    """Groups whose variants are worth a table: those that differ, or one where none does."""


def prompt_views(analysis: Analysis, limits: Limits) -> tuple[PromptView, ...]:
    """Every prompt of a run in order."""
    by_prompt: dict[int, list[Group]] = {}
    for group in analysis.groups:
        by_prompt.setdefault(group.prompt_index, []).append(group)
    return tuple(_prompt_view(groups, limits) for groups in by_prompt.values())


def _prompt_view(groups: Sequence[Group], limits: Limits) -> PromptView:
    views = tuple(_group_view(group, limits) for group in groups)
    some = tuple(view for view in views if view.variants)
    return PromptView(
        prompt_index=groups[0].prompt_index,
        prompt=groups[0].prompt,
        sentence=_sentence(groups),
        groups=views,
        by_batch_size=_by_batch_size(groups),
        listed=tuple(view for view in some if view.distinct > 1) or some[:1],
    )


def headline(analysis: Analysis) -> str:
    """The finding in one line."""
    control, cure = control_groups(analysis), cure_groups(analysis)
    if not any(group.completions for group in analysis.groups):
        return "No answer came back"
    worst = max(control, key=lambda group: group.distinct)
    several = len(control) > 1
    said = (
        f"{'Up to ' if several else ''}{count(worst.distinct, 'different answer')} to one question"
    )
    if worst.distinct == 1:
        said = "One answer" + (" to each question" if several else "")
        # "Whatever the load" is a claim: it needs the load to have been there.
        came = sum(group.completions for group in control)
        lacks = lacking(analysis, analysis.groups)
        said += f" in {came:,} completions" if lacks else ", whatever the load"
    cured = [group for group in cure if group.kernels != worst.kernels and group.completions]
    if not cured:
        return said
    left = max(group.distinct for group in cured)
    if worst.distinct == left == 1:
        return said
    return f"{said}; {left:,} with {cured[0].kernels} kernels"


def about(analysis: Analysis) -> str:
    """The setting in one line."""
    experiment, target = analysis.run.experiment, analysis.run.target
    dtype = analysis.run.model.dtype or getattr(target, "dtype", None)
    facts = [
        clip(target.model_name, 60),
        f"{target.engine} engine",
        ", ".join(clip(url, 60) for url in getattr(target, "endpoints", ())),
        f"{experiment.traffic} traffic",
        f"batch sizes {', '.join(map(str, experiment.batch_sizes))}",
        f"{experiment.max_new_tokens} tokens",
        f"temperature {experiment.temperature:g}",
        "" if dtype in (None, "auto") else dtype,
    ]
    return " · ".join(fact for fact in facts if fact)


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of every setting that was recorded; empty values left out."""
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in settings(environment)
        if value not in (None, "")
    ]


def flip_reason(flip: Flip) -> str:
    """What speaks for the kind of a flip: the gaps on both sides, the noise, and who won."""
    parts = []
    gaps = [number(gap) for gap in (flip.reference_gap, flip.variant_gap) if gap is not None]
    if gaps:
        parts.append(f"{'gaps' if len(gaps) > 1 else 'gap'} {' and '.join(gaps)} nats")
    if flip.noise is not None:
        parts.append(f"noise {number(flip.noise)}")
    if flip.runner_up_won is not None:
        parts.append("the runner-up won" if flip.runner_up_won else "not the runner-up")
    return ": " + ", ".join(parts) if parts else ""


def _group_view(group: Group, limits: Limits) -> GroupView:
    places = partings(group)
    tree = group.tree
    return GroupView(
        kernels=group.kernels,
        distinct=group.distinct,
        unit=group.unit,
        root=prune(
            group,
            max_leaves=limits.leaves,
            max_depth=limits.depth,
            max_children=limits.children,
        ),
        shared=tree.stop if tree is not None else 0,
        trunk=tail(tree.text, 480) if tree is not None else "",
        variants=_variant_lines(group, limits.variants),
        hidden_variants=max(0, group.distinct - limits.variants),
        partings=places[: limits.partings],
        hidden_partings=max(0, len(places) - limits.partings),
    )


def _by_batch_size(groups: Sequence[Group]) -> tuple[BatchLine, ...]:
    """Rows of all kernels settings, one batch size after the other."""
    rows = [(row, group.kernels) for group in groups for row in group.by_batch_size]
    rows.sort(key=lambda pair: pair[0].batch_size)
    sizes = [None, *(row.batch_size for row, _ in rows)]
    return tuple(
        BatchLine(kernels, row, again=row.batch_size == before)
        for before, (row, kernels) in zip(sizes, rows, strict=False)
    )


def _variant_lines(group: Group, most: int) -> tuple[VariantLine, ...]:
    words = {
        found.variant.fingerprint: (found.context, found.variant.piece(found.position, 1 << 30))
        for found in group.divergences
    }
    lines = []
    for counted in group.variants[:most]:
        variant = counted.variant
        before, excerpt = words.get(variant.fingerprint, ("", variant.text))
        lines.append(VariantLine(counted, tail(before, 36), excerpt or "(ends here)"))
    return tuple(lines)


def _sentence(groups: Sequence[Group]) -> str:
    """Each kernels setting in a clause, and what a silent control means."""
    stock = next((group for group in groups if group.kernels == STOCK), None)
    clauses = []
    for group in groups:
        completions = count(group.completions, "completion")
        clause = f"{group.kernels}: {group.distinct:,} distinct of {completions}"
        shared = beside_stock(stock, group) if stock is not None and group is not stock else ""
        clauses.append(f"{clause}, {shared}" if shared else clause)
    if len(groups) > 1 and stock is not None and stock.distinct == 1:
        clauses.append(CONTROL_DID_NOT_DIVERGE)
    return "; ".join(clauses) + "."
