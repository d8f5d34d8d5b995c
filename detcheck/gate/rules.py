"""The rules of a gate: its limits, what it holds a run to, and the evidence that a pass needs."""

from __future__ import annotations

from collections.abc import Iterator

from detcheck.analysis.divergence import two_ways
from detcheck.analysis.evidence import (
    FAIL,
    INCONCLUSIVE,
    NOTE,
    Finding,
    endpoint_sentence,
    lacking,
)
from detcheck.analysis.results import CONFIDENT, UNKNOWN, Flip, Group, SeedSplit
from detcheck.errors import UsageError
from detcheck.evidence import UNKNOWN_FIELDS, WHOLE_ANSWERS
from detcheck.gate.answer_rules import ANSWER_RULES
from detcheck.gate.changes import changed_answers
from detcheck.gate.given import GateInput, Rule
from detcheck.gate.identity import models_of
from detcheck.gate.judged import duration_in_words
from detcheck.gate.levels import AtLevel
from detcheck.gate.notes import NOTES, counted
from detcheck.gate.options import BITS, TEXT, parse_duration
from detcheck.parsers import answer_parser
from detcheck.text import count, quoted

MOST_EXAMPLES = 3
"""Answers that a sentence names."""
CLOCK_TOLERANCE_S = 300
"""A run that finished this many seconds from now may just have another clock."""


def check_limit(given: GateInput) -> None:
    """Raise UsageError if the completions, or the prompts, are too few to exceed a limit.

    A limit on distinct answers that was exceeded all the same is left to `too_many_answers`.
    """
    given.options.check_flips(len({group.prompt_index for group in given.groups}))
    limit = given.options.limit or 1
    if limit == 1 or any(given.counts(group).distinct > limit for group in given.groups):
        return
    for group in given.groups:
        whole = group.completions >= group.asked
        made = group.comparisons if whole else group.asked - 1
        possible = made // max(1, len(group.seeds))  # a limit holds for each seed
        if limit >= possible:
            raise UsageError(
                f"`max_distinct` is {limit}, which {group.name} cannot exceed with "
                f"{count(possible, 'comparison')}: lower it, or ask for more completions."
            )


def too_many_answers(given: GateInput) -> Iterator[Finding]:
    """Fails a group with more distinct answers than are allowed.

    Without a limit, at the level bits, one answer must still have one set of log-probabilities.
    """
    for group in given.groups:
        found = given.counts(group)
        limit = given.options.limit
        if limit is None and found.level == BITS:
            limit = max(1, group.distinct_within_seed)
        if limit is not None and found.distinct > limit:
            if found.level == BITS and group.distinct_within_seed <= limit:
                sentence = _by_bits(group, found, limit)
            else:
                detail = _parsed(found) if found.labels else _first_divergence(group, found)
                answers = counted(group, min(group.distinct_within_seed, found.distinct))
                sentence = f"{answers}, at most {limit} allowed: {detail}."
            yield Finding("max-distinct", FAIL, sentence, group)


def limit_has_power(given: GateInput) -> Iterator[Finding]:
    """A limit above one needs one more comparison for each further answer that it allows."""
    limit, least = given.options.limit, given.options.min_comparisons
    for group in given.groups if limit is not None else ():
        spare = ((limit or 1) - 1) * max(1, len(group.seeds))  # a limit holds for each seed
        made, needed = group.comparisons, least + spare
        if least <= made < needed:
            sentence = (
                f"Up to {limit} answers are allowed, so a pass needs {needed} comparisons under a "
                f"batch larger than one, and {made} were made: ask for more completions."
            )
            yield Finding("max-distinct", INCONCLUSIVE, sentence, group)


def comparable_at_level(given: GateInput) -> Iterator[Finding]:
    """A completion without log-probabilities, or without an answer, cannot be judged by them.

    Nor can rounded log-probabilities show that bits are equal.
    """
    for group in given.groups:
        found = given.counts(group)
        completions = f"{count(found.unknown, 'completion')} of {group.completions:,}"
        if found.unknown and found.level == BITS:
            sentence = (
                f"{completions} came without log-probabilities, so they cannot be judged by bits: "
                "judge by tokens."
            )
            yield Finding("level", INCONCLUSIVE, sentence, group)
        elif found.rounding:
            sentence = (
                f"The server rounds its log-probabilities {found.rounding}, so a smaller "
                "difference cannot be seen: judge by tokens, or have it send all digits."
            )
            yield Finding("level", INCONCLUSIVE, sentence, group)
        elif found.unknown and not given.options.limits_answers:
            examples = ", ".join(quoted(text, 60) for text in _unparsed(given, group))
            sentence = f"The parser found no answer in {completions}, such as {examples}."
            yield Finding("level", INCONCLUSIVE, sentence, group)


def _unparsed(given: GateInput, group: Group) -> list[str]:
    """Up to three texts of a group in which the parser finds no answer."""
    parse = answer_parser(given.options.answer or "exact")
    texts = (counted.variant.text for counted in group.variants)
    return [text for text in texts if parse(text) is None][:MOST_EXAMPLES]


def evidence_lacking(given: GateInput) -> Iterator[Finding]:
    """Nothing passes if the run lacks evidence that a pass needs."""
    yield from lacking(
        given.analysis,
        given.groups,
        min_comparisons=given.options.min_comparisons,
        control=given.control_run,
    )


def control_required(given: GateInput) -> Iterator[Finding]:
    """If a control is required, a group without one is inconclusive."""
    if not given.options.require_control:
        return
    for group in given.groups:
        if given.control(group) is None:
            sentence = (
                "No control was measured, and one is required: run stock kernels in the same run, "
                "or give another run as the control."
            )
            yield Finding("control-required", INCONCLUSIVE, sentence, group)


def whole_answers(given: GateInput) -> Iterator[Finding]:
    """Tokens that a server never showed, or in fields that are not read, cannot be judged."""
    effect = INCONCLUSIVE if given.options.require_whole_answer else NOTE
    for group in given.groups:
        if unseen := given.unseen_tokens(group):
            sentence = (
                f"The server counted {count(unseen, 'token')} that it never showed, such as hidden "
                "reasoning: only the text that was shown is judged."
            )
            yield Finding("whole-answer", effect, sentence, group)
    for check in given.analysis.run.endpoint_checks if effect == INCONCLUSIVE else ():
        if check.name == UNKNOWN_FIELDS and check.holds is False:
            yield Finding("whole-answer", effect, endpoint_sentence(check))
        if check.name == WHOLE_ANSWERS and check.holds is None:
            sentence = f"Whole answers are required, and {check.sentence}."
            yield Finding("whole-answer", effect, sentence)


def model_held(given: GateInput) -> Iterator[Finding]:
    """If a model is named, a run of another model says nothing about it."""
    name = given.options.model
    if name is None:
        return
    models = models_of(given.analysis.run)
    if name not in models:
        asked = quoted(models[0], 80) if models else "a model that it does not name"
        sentence = f"The run asked {asked}, not {quoted(name, 80)}."
        yield Finding("model", INCONCLUSIVE, sentence)


def age_held(given: GateInput) -> Iterator[Finding]:
    """If an age is set, an older run says nothing about today."""
    if given.options.max_age is None:
        return
    limit, age = parse_duration(given.options.max_age), given.age
    if age > limit:
        sentence = (
            f"The run is {duration_in_words(age)} old, and at most {given.options.max_age} is "
            "allowed: run it again."
        )
        yield Finding("max-age", INCONCLUSIVE, sentence)
    elif age.total_seconds() < -CLOCK_TOLERANCE_S:
        sentence = (
            f"The run finished {duration_in_words(-age)} in the future by this machine's clock, so "
            "its age is not known."
        )
        yield Finding("max-age", INCONCLUSIVE, sentence)


def _by_bits(group: Group, found: AtLevel, limit: int) -> str:
    sizes = ", ".join(map(str, found.batch_sizes))
    return (
        f"{counted(group)}, but the log-probabilities of {count(found.differing, 'completion')} "
        f"differ in some bit from the reference's (batch size {sizes}): {found.distinct} different "
        f"by bits, at most {limit} allowed."
    )


def _parsed(found: AtLevel) -> str:
    """`"42" 40 times, "41" 8 times`: parsed answers, most common first."""
    named = [
        f"{'no answer' if label is None else quoted(label)} {count(number, 'time')}"
        for label, number in found.labels[:MOST_EXAMPLES]
    ]
    more = len(found.labels) - MOST_EXAMPLES
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _first_divergence(group: Group, found: AtLevel) -> str:
    diverged = [
        divergence
        for split in group.by_seed
        for divergence in split.divergences
        if found.level != TEXT or divergence.variant.text != _reference_text(split)
    ]
    first = min(diverged, key=lambda divergence: divergence.position)
    ways = two_ways(first.context, first.reference_piece, first.piece)
    return f"the first divergence is at position {first.position}{ways} {_why(first.flip)}"


def _why(flip: Flip) -> str:
    """The kind of a flip and its meaning, or the reason why it is not known."""
    if flip.kind == CONFIDENT:
        return f"({flip.kind}): this is not rounding, but a bug"
    if flip.kind != UNKNOWN:
        return f"({flip.kind}): rounding decided between two tokens"
    if flip.gap is None:
        return "(no log-probabilities to tell why)"
    return "(no noise was measured to tell rounding from a bug)"


def _reference_text(split: SeedSplit) -> str | None:
    return None if split.reference is None else split.reference.variant.text


RULES: tuple[Rule, ...] = (
    too_many_answers,
    *ANSWER_RULES,
    changed_answers,
    limit_has_power,
    comparable_at_level,
    evidence_lacking,
    control_required,
    whole_answers,
    model_held,
    age_held,
    *NOTES,
)
"""All rules, in the order in which their findings of one severity are listed."""
