"""Accepting the answers of a run: a new baseline, or an existing one brought up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from detcheck.analysis.results import Analysis, Group, SeedSplit
from detcheck.gate.baseline import (
    PREVIEW,
    AcceptedPrompt,
    Baseline,
    baseline_of,
    check_source,
    key_of,
)
from detcheck.gate.changes import change_in_words, check_same_question
from detcheck.text import count


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A baseline that is ready to be written, and its changes."""

    baseline: Baseline
    changes: tuple[str, ...]
    """A sentence for each entry (prompt, kernels and seed) that is new or whose answers changed."""
    changed: int
    """Prompts with such an entry."""
    same: int
    """Prompts whose accepted answers stay as they were."""
    kept: int
    """Prompts of the existing baseline that the run did not ask, and that stay in it."""
    refused: int = 0
    """Prompts with a change that the review refused; that stays as it was, or out of the baseline.
    """


def accept(
    analysis: Analysis,
    kernels: tuple[str, ...],
    existing: Baseline | None = None,
    *,
    add: bool = False,
    review: Callable[[str], bool] | None = None,
) -> Acceptance:
    """Accept the answers of a run under `kernels`, in place of those that `existing` accepts.

    Prompts that only `existing` has stay in it. If `add` is true, the answers that it accepts stay
    accepted beside the run's. `review` is called with the sentence of each change; if it returns
    false, the change is refused. Raises UsageError if the run is no evidence of its answers, or if
    `existing` was asked something else.
    """
    if existing is not None:
        check_same_question(existing, analysis.run)
    check_source(analysis, kernels, "The run", "no evidence of answers to accept")
    new = baseline_of(analysis, kernels, PREVIEW)
    parts = {
        key_of(analysis.run, group, split): (group, split)
        for group in analysis.groups
        for split in group.by_seed
    }
    before = {entry.key: entry for entry in existing.prompts} if existing else {}
    changes: list[str] = []
    entries = dict(before)
    changed: set[str] = set()
    refused: set[str] = set()
    for entry in new.prompts:
        old = before.get(entry.key)
        sentences = tuple(_changes(old, *parts[entry.key], add=add))
        if review is not None and not all(map(review, sentences)):
            refused.add(entry.prompt)
            continue
        entries[entry.key] = _merged(old, entry) if add and old is not None else entry
        changes.extend(sentences)
        changed |= {entry.prompt for _ in sentences}
    asked = {entry.prompt for entry in new.prompts}
    return Acceptance(
        baseline=msgspec.structs.replace(new, prompts=tuple(entries.values())),
        changes=tuple(changes),
        changed=len(changed),
        same=len(asked - changed - refused),
        kept=len({entry.prompt for entry in before.values()} - asked),
        refused=len(refused),
    )


def _merged(old: AcceptedPrompt, new: AcceptedPrompt) -> AcceptedPrompt:
    """Both entries' answers, each once."""
    answers = {answer.fingerprint: answer for answer in (*old.answers, *new.answers)}
    return msgspec.structs.replace(new, answers=tuple(answers.values()))


def _changes(
    old: AcceptedPrompt | None, group: Group, split: SeedSplit, *, add: bool
) -> Iterator[str]:
    """A sentence if the accepted answers to one seed of a group change."""
    name = group.name + (f" seed {split.seed}" if len(group.seeds) > 1 else "")
    if old is None:
        yield f"{name}: new, {count(split.distinct, 'answer')} accepted"
        return
    new = [counted.variant for counted in split.variants if not old.accepts(counted.variant)]
    back = sum(old.accepts(counted.variant) for counted in split.variants)
    gone = 0 if add else len(old.answers) - back
    parts = [f"{count(len(new), 'new answer')}: {change_in_words(old, new[0])}"] if new else []
    parts += [f"{count(gone, 'answer')} no longer accepted"] if gone > 0 else []
    if parts:
        yield f"{name}: {'; '.join(parts)}"
