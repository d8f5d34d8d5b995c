"""Everything that a report shows of one prompt under all its kernels settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE
from detcheck.analysis.results import BatchSizeRow, Flip, Group, VariantCount
from detcheck.kernels.settings import STOCK
from detcheck.report.branchings import BranchingPlace, branching_places
from detcheck.report.card import answers_of
from detcheck.report.checks import Bound, bounds
from detcheck.report.overview import PromptRow
from detcheck.report.prefix_tree import Branch, branches
from detcheck.report.roles import compared_with_stock
from detcheck.report.seeds import SeedsView, seeds_view
from detcheck.report.text import number, tail
from detcheck.report.word_diff import WordDiff, word_diff
from detcheck.text import count


@dataclass(frozen=True, slots=True)
class ListedVariant:
    """One variant, split at its divergence from the reference."""

    counted: VariantCount
    shared: str
    """The text up to there; empty for the reference."""
    rest: str
    """The text from there on; the whole text for the reference."""

    @property
    def before(self) -> str:
        """The last words that it shares with the reference."""
        return tail(self.shared, 36)


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A row of the table by batch size."""

    kernels: str
    row: BatchSizeRow
    again: bool
    """True if the row before has the same batch size."""


@dataclass(frozen=True, slots=True)
class GroupView:
    """One prompt under one kernels setting."""

    kernels: str
    distinct: int
    completions: int
    unit: str
    """The unit of positions: `token` or `character`."""
    tree: Branch | None
    """The whole prefix tree; None if no completion came back."""
    shared: int
    """Tokens (characters without token ids) that every completion begins with."""
    trunk: str
    """The text of these."""
    variants: tuple[ListedVariant, ...]
    """Most common first."""
    places: tuple[BranchingPlace, ...]
    """The places of divergence, most completions first."""
    flips: Mapping[str, int]
    """Branchings by kind."""


@dataclass(frozen=True, slots=True)
class AnswersBeside:
    """The reference answer under stock kernels beside that under the cure."""

    left_name: str
    right_name: str
    diff: WordDiff
    sentence: str
    """Whether they are equal, and whether the cure's answer is another of stock's."""


@dataclass(frozen=True, slots=True)
class PromptView:
    """One prompt under every kernels setting."""

    prompt_index: int
    prompt: str
    row: PromptRow
    sentence: str
    """How many answers each kernels setting gave."""
    reservation: str
    """A sentence if the control never varied; else empty."""
    groups: tuple[GroupView, ...]
    by_batch_size: tuple[BatchLine, ...]
    listed: tuple[GroupView, ...]
    """Groups whose variants are worth a table: those that differ, or one if none does."""
    beside: AnswersBeside | None
    """None without stock kernels, without others, or if one of them gave no answer."""
    bounds: tuple[Bound, ...]
    seeds: SeedsView | None
    """None if there is only one seed."""

    @property
    def anchor(self) -> str:
        """The name of its section: `prompt-3` for the third prompt of the run."""
        return f"prompt-{self.prompt_index + 1}"


def prompt_view(row: PromptRow, groups: Sequence[Group]) -> PromptView:
    """The view of one prompt from its row and its groups, one for each kernels setting."""
    views = tuple(_group_view(group) for group in groups)
    with_answers = tuple(view for view in views if view.variants)
    return PromptView(
        prompt_index=groups[0].prompt_index,
        prompt=groups[0].prompt,
        row=row,
        sentence=_sentence(groups),
        reservation=_reservation(groups),
        groups=views,
        by_batch_size=_by_batch_size(groups),
        listed=tuple(view for view in with_answers if view.distinct > 1) or with_answers[:1],
        beside=_answers_beside(groups),
        bounds=bounds(groups),
        seeds=seeds_view(groups),
    )


def flip_reason(flip: Flip) -> str:
    """The reason for the kind of a flip: the gaps on both sides, the noise, and which token won."""
    parts = []
    gaps = [number(gap) for gap in (flip.reference_gap, flip.variant_gap) if gap is not None]
    if gaps:
        parts.append(f"{'gaps' if len(gaps) > 1 else 'gap'} {' and '.join(gaps)} nats")
    if flip.noise is not None:
        parts.append(f"noise {number(flip.noise)}")
    if flip.runner_up_won is not None:
        parts.append("the runner-up won" if flip.runner_up_won else "not the runner-up")
    return ": " + ", ".join(parts) if parts else ""


def _group_view(group: Group) -> GroupView:
    tree = group.tree
    return GroupView(
        kernels=group.kernels,
        distinct=group.distinct,
        completions=group.completions,
        unit=group.unit,
        tree=branches(group),
        shared=tree.stop if tree is not None else 0,
        trunk=tail(tree.text, 480) if tree is not None else "",
        variants=tuple(_listed_variant(counted) for counted in group.variants),
        places=branching_places(group),
        flips=group.flips,
    )


def _listed_variant(counted: VariantCount) -> ListedVariant:
    position = counted.first_divergence or 0
    rest = counted.variant.piece(position, 1 << 30)
    return ListedVariant(counted, counted.variant.piece(0, position), rest)


def _by_batch_size(groups: Sequence[Group]) -> tuple[BatchLine, ...]:
    """Rows of all kernels settings, one batch size after the other."""
    rows = [(row, group.kernels) for group in groups for row in group.by_batch_size]
    rows.sort(key=lambda pair: pair[0].batch_size)
    sizes = [None, *(row.batch_size for row, _ in rows)]
    return tuple(
        BatchLine(kernels, row, again=row.batch_size == before)
        for before, (row, kernels) in zip(sizes, rows, strict=False)
    )


def _answers_beside(groups: Sequence[Group]) -> AnswersBeside | None:
    """The reference of stock beside that of the cure, to the first seed if there are several."""
    stock = next((group for group in groups if group.kernels == STOCK), None)
    cure = next((group for group in groups if group.kernels != STOCK and group.variants), None)
    if stock is None or cure is None:
        return None
    ours, theirs = _reference(stock), _reference(cure)
    if ours is None or theirs is None:
        return None
    seed = f"seed {stock.by_seed[0].seed}, " if len(stock.by_seed) > 1 else ""
    return AnswersBeside(
        left_name=f"stock, {seed}batch size {min(ours.batch_sizes)}",
        right_name=f"{cure.kernels}, {seed}{count(theirs.count, 'completion')}",
        diff=word_diff(ours.variant.text, theirs.variant.text),
        sentence=_cure_among_stock(stock, cure, ours, theirs),
    )


def _reference(group: Group) -> VariantCount | None:
    """The reference of a group, of its first seed if there are several."""
    return group.by_seed[0].reference if len(group.by_seed) > 1 else group.reference


def _cure_among_stock(
    stock: Group, cure: Group, reference: VariantCount, answer: VariantCount
) -> str:
    """Which of stock's variants the cure's answer is."""
    fingerprint = answer.variant.fingerprint
    if fingerprint == reference.variant.fingerprint:
        return f"The answer of {cure.kernels} kernels is stock's answer at that batch size."
    for counted in stock.variants:
        if counted.variant.fingerprint == fingerprint:
            sizes = ", ".join(map(str, counted.batch_sizes))
            times = f"{counted.count:,} of {count(stock.completions, 'time')}"
            return (
                f"The answer of {cure.kernels} kernels is variant {counted.rank} of stock: stock "
                f"gave it {times}, at batch size {sizes}."
            )
    return f"Stock kernels never gave the answer of {cure.kernels} kernels."


def _sentence(groups: Sequence[Group]) -> str:
    """How many answers each kernels setting gave, a clause for each."""
    stock = next((group for group in groups if group.kernels == STOCK), None)
    clauses = []
    for group in groups:
        completions = count(group.completions, "completion")
        clause = f"{group.kernels}: {group.distinct:,} distinct of {completions}"
        if len(group.by_seed) > 1:
            clause += f", {answers_of(group, several=False)}"
        beside = "" if stock is None or group is stock else compared_with_stock(stock, group)
        clauses.append(f"{clause}, {beside}" if beside else clause)
    return "; ".join(clauses) + "."


def _reservation(groups: Sequence[Group]) -> str:
    """What it means if the control has one answer; empty if it does not, or without a control."""
    stock = next((group for group in groups if group.kernels == STOCK), None)
    if len(groups) < 2 or stock is None or stock.distinct_within_seed != 1:
        return ""
    if stock.logprobs_differ:
        moved = count(stock.logprobs_differ, "completion")
        return f"Stock has one answer too: only the log-probabilities of {moved} moved."
    return CONTROL_DID_NOT_DIVERGE[0].upper() + CONTROL_DID_NOT_DIVERGE[1:] + "."
