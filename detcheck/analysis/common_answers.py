"""Answers of two runs to one prompt, made comparable: over their common length, in one identity.

Runs may have different token limits: then only the tokens up to the smaller limit are compared.
A server may give token ids in one run and none in the other: then the text is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from detcheck.analysis.divergence import comparable
from detcheck.completion import fingerprint_text, fingerprint_token_ids
from detcheck.rundir import Run, StoredVariant

Answers = Mapping[str, StoredVariant]
"""Answers as compared, by the fingerprint that they are stored under."""


def common_limit(left: Run, right: Run) -> int | None:
    """The smaller token limit of two runs; None if they have the same."""
    limits = {left.experiment.max_new_tokens, right.experiment.max_new_tokens}
    return min(limits) if len(limits) > 1 else None


def common_answers(left: Run, right: Run, prompt: str) -> tuple[Answers, Answers]:
    """The answers of both runs to `prompt`, which both asked, as they are compared.

    Two answers are the same if their fingerprints here are.
    """
    limit = common_limit(left, right)
    stored = [_stored(run, prompt) for run in (left, right)]
    cut = [[_cut(variant, limit) for variant in variants] for variants in stored]
    if limit is not None:
        longer = 0 if left.experiment.max_new_tokens > limit else 1
        cut[longer] = _cut_by_text(cut[longer], cut[1 - longer])
    compared = [_with_own_fingerprint(v) for v in comparable([*cut[0], *cut[1]])]
    by_stored = [
        {variant.fingerprint: answer for variant, answer in zip(variants, answers, strict=True)}
        for variants, answers in (
            (stored[0], compared[: len(stored[0])]),
            (stored[1], compared[len(stored[0]) :]),
        )
    ]
    return by_stored[0], by_stored[1]


def _stored(run: Run, prompt: str) -> list[StoredVariant]:
    index = run.experiment.prompts.index(prompt)
    return [variant for variant in run.variants if variant.prompt_index == index]


def _cut(variant: StoredVariant, limit: int | None) -> StoredVariant:
    """The first `limit` tokens of an answer; all of it if its tokens are not known."""
    ends = variant.token_ends
    if limit is None or ends is None or len(ends) <= limit:
        return variant
    ids, runners_up = variant.token_ids, variant.runner_up_token_ids
    texts, gaps = variant.runner_up_texts, variant.gaps
    return replace(
        variant,
        text=variant.text[: int(ends[limit - 1])],
        token_ids=None if ids is None else ids[:limit],
        token_ends=ends[:limit],
        runner_up_token_ids=None if runners_up is None else runners_up[:limit],
        runner_up_texts=None if texts is None else texts[:limit],
        gaps=None if gaps is None else gaps[:limit],
    )


def _cut_by_text(
    longer: Sequence[StoredVariant], shorter: Sequence[StoredVariant]
) -> list[StoredVariant]:
    """`longer`, an answer of unknown tokens cut to the longest of `shorter` that it begins with."""
    texts = sorted({variant.text for variant in shorter if variant.text}, key=len, reverse=True)

    def cut(variant: StoredVariant) -> StoredVariant:
        if variant.token_ends is not None:
            return variant
        text = next((text for text in texts if variant.text.startswith(text)), variant.text)
        return replace(variant, text=text)

    return [cut(variant) for variant in longer]


def _with_own_fingerprint(variant: StoredVariant) -> StoredVariant:
    """The variant, with the fingerprint of its remaining tokens."""
    if variant.token_ids is None:
        return replace(variant, fingerprint=fingerprint_text(variant.text))
    return replace(variant, fingerprint=fingerprint_token_ids(variant.token_ids.tolist()))
