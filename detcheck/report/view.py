"""What a report shows of an analysis, prompt by prompt; HTML and Markdown only lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detcheck.analysis.results import Analysis, BatchSizeRow, Group, VariantCount
from detcheck.experiment import STOCK, Experiment
from detcheck.report.answers import control_groups, cure_groups, unit
from detcheck.report.checks import CONTROL_DID_NOT_DIVERGE, unsound
from detcheck.report.partings import Parting, partings
from detcheck.report.prefix_tree import Branch, prune
from detcheck.report.text import clip, count, number, tail


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

    rank: int
    count: int
    share: float
    is_reference: bool
    first_divergence: int | None
    batch_sizes: tuple[int, ...]
    before: str
    """The last words it shares with the reference; empty for the reference."""
    excerpt: str
    text: str


@dataclass(frozen=True, slots=True)
class GroupView:
    """One prompt under one kernels setting."""

    group: Group
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
    by_batch_size: tuple[BatchSizeRow, ...]


@dataclass(frozen=True, slots=True)
class PromptView:
    """One prompt under every kernels setting."""

    prompt_index: int
    prompt: str
    sentence: str
    groups: tuple[GroupView, ...]
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
        said += ", whatever the load" if unsound(analysis) is None else f" in {came:,} completions"
    cured = [group for group in cure if group.kernels != worst.kernels and group.completions]
    if not cured:
        return said
    left = max(group.distinct for group in cured)
    if worst.distinct == left == 1:
        return said
    return f"{said}; {left:,} with {cured[0].kernels} kernels"


def about(analysis: Analysis) -> str:
    """The setting in one line."""
    experiment = analysis.run.experiment
    facts = [
        _model(experiment),
        f"{experiment.engine} engine",
        ", ".join(clip(url, 60) for url in experiment.endpoints),
        f"{experiment.traffic} traffic",
        f"batch sizes {', '.join(map(str, experiment.batch_sizes))}",
        f"{experiment.max_new_tokens} tokens",
        f"temperature {experiment.temperature:g}",
        experiment.dtype if experiment.dtype != "auto" else "",
    ]
    return " · ".join(fact for fact in facts if fact)


def _model(experiment: Experiment) -> str:
    if experiment.model:
        return clip(experiment.model, 60)
    return "the served model" if experiment.endpoints else "SmolLM2-135M-Instruct (embedded)"


def environment_rows(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) pairs of a nested mapping, names joined by dots; empty values left out."""
    rows: list[tuple[str, str]] = []
    for key, value in environment.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += environment_rows(value, f"{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            rows.append((name, ", ".join(map(str, value))))
        elif value is not None and value != "":
            rows.append((name, str(value)))
    return rows


def flip_reason(flip: Any) -> str:
    """What speaks for the kind of a flip: its gap, the noise, and who won."""
    parts = []
    if flip.reference_gap is not None:
        parts.append(f"gap {number(flip.reference_gap)} nats")
    if flip.noise is not None:
        parts.append(f"noise {number(flip.noise)}")
    if flip.runner_up_won is not None:
        parts.append("the runner-up won" if flip.runner_up_won else "not the runner-up")
    return ": " + ", ".join(parts) if parts else ""


def _group_view(group: Group, limits: Limits) -> GroupView:
    places = partings(group)
    tree = group.tree
    return GroupView(
        group=group,
        kernels=group.kernels,
        distinct=group.distinct,
        unit=unit(group),
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
        by_batch_size=group.by_batch_size,
    )


def _variant_lines(group: Group, most: int) -> tuple[VariantLine, ...]:
    words = {
        found.variant.fingerprint: (found.context, found.variant.piece(found.position, 1 << 30))
        for found in group.divergences
    }
    return tuple(
        _variant_line(variant, *words.get(variant.variant.fingerprint, ("", variant.variant.text)))
        for variant in group.variants[:most]
    )


def _variant_line(variant: VariantCount, before: str, excerpt: str) -> VariantLine:
    return VariantLine(
        rank=variant.rank,
        count=variant.count,
        share=variant.share,
        is_reference=variant.is_reference,
        first_divergence=variant.first_divergence,
        batch_sizes=variant.batch_sizes,
        before=tail(before, 36) if before else "",
        excerpt=excerpt or "(ends here)",
        text=variant.variant.text,
    )


def _sentence(groups: Sequence[Group]) -> str:
    """Each kernels setting in a clause, and what a silent control means."""
    said = "; ".join(
        f"{group.kernels}: {group.distinct:,} distinct of {count(group.completions, 'completion')}"
        for group in groups
    )
    stock = [group for group in groups if group.kernels == STOCK and group.completions]
    if len(groups) > 1 and stock and stock[0].distinct == 1:
        said += f"; {CONTROL_DID_NOT_DIVERGE}"
    return said + "."
