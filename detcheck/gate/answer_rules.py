"""Rules on the parsed answers of the whole set: items that flip, and the spread of the score."""

from __future__ import annotations

from collections.abc import Iterator

from detcheck.analysis.answers import AnsweredItem, AnswerStability
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE, Finding, percent_of
from detcheck.gate.given import GateInput, Rule
from detcheck.text import amount, count, quoted, verb

MOST_EXAMPLES = 3
"""Answers of an item that a sentence names."""
TOLERANCE = 1e-9
"""Points by which rounding may move a difference of two scores."""


def answers_parsed(given: GateInput) -> Iterator[Finding]:
    """If the parser finds no answer in any completion, nothing was judged."""
    for stability in given.stabilities:
        examples = ", ".join(quoted(text, 60) for text in stability.unparsed_examples)
        if stability.parsed_nothing:
            sentence = (
                f"The parser {given.options.answer} found no answer in any of "
                f"{count(stability.completions, 'completion')} with {stability.kernels} kernels, "
                f"such as {examples}: choose another parser."
            )
            yield Finding("answers-parsed", INCONCLUSIVE, sentence)
        elif stability.unparsed:
            sentence = (
                f"The parser found no answer in {stability.unparsed:,} of "
                f"{count(stability.completions, 'completion')}, such as {examples}: no "
                "answer counts as one more answer of an item."
            )
            yield Finding("answers-parsed", NOTE, sentence)


def answers_unseen(given: GateInput) -> Iterator[Finding]:
    """An item of which nothing was parsed and whose texts differ may flip without being seen."""
    for stability in given.stabilities:
        for item in stability.items if not stability.parsed_nothing else ():
            if item.flips_unseen:
                sentence = (
                    f"The parser found no answer in any completion of {item.name}, such as "
                    f"{quoted(item.answers[0].example, 60)}, and its texts differ, so its answer "
                    "may have changed: ask for longer completions, or choose another parser."
                )
                group = given.analysis.group(item.prompt_index, stability.kernels)
                yield Finding("answers-parsed", INCONCLUSIVE, sentence, group)


def too_many_flips(given: GateInput) -> Iterator[Finding]:
    """Fails each item whose parsed answer changes, if more of them do than are allowed."""
    limit = given.options.max_answer_flips
    for stability in given.stabilities if limit is not None else ():
        flipped, total = stability.flipped, len(stability.items)
        change = verb(len(flipped), "changes", "change")
        if len(flipped) > (limit or 0):
            for item in flipped:
                sentence = (
                    f"The answer to {item.name} changes with the load ({_answers(item)}): "
                    f"{len(flipped):,} of {count(total, 'item')} {change}, at most {limit} allowed."
                )
                group = given.analysis.group(item.prompt_index, stability.kernels)
                yield Finding("max-answer-flips", FAIL, sentence, group)
        elif stability.flip_interval is not None and not stability.parsed_nothing:
            bound = percent_of(stability.flip_interval[1])
            sentence = (
                f"The answer to {len(flipped):,} of {count(total, 'item')} changes with the load: "
                f"with 95 % confidence at most {bound} of such items would."
            )
            yield Finding("max-answer-flips", NOTE, sentence)


def too_wide_a_spread(given: GateInput) -> Iterator[Finding]:
    """Fails a set whose score moves by more points than are allowed."""
    limit = given.options.max_accuracy_spread
    for stability in given.stabilities if limit is not None else ():
        if stability.spread is None:
            sentence = (
                "No right answers are known, so there is no score: give every prompt an answer in "
                "the prompts file."
            )
            yield Finding("max-accuracy-spread", INCONCLUSIVE, sentence)
        elif len(stability.by_load) < 2:
            sentence = (
                "The score is known at one batch size only, so the load could not move it: run "
                "with several batch sizes."
            )
            yield Finding("max-accuracy-spread", INCONCLUSIVE, sentence)
        elif stability.never_right and not stability.parsed_nothing:
            item = next(item for item in stability.items if item.correct_share)
            sentence = (
                "No completion gives a right answer at any batch size, so the load could not move "
                f"the score: for {item.name} {quoted(item.expected or '')} is right, and the "
                f"parser found {_answers(item)}. Check the answers of the prompts file and the "
                "parser."
            )
            yield Finding("max-accuracy-spread", INCONCLUSIVE, sentence)
        elif 100 * stability.spread > (limit or 0) + TOLERANCE:
            sentence = f"{_spread(stability)}, at most {limit:g} allowed."
            yield Finding("max-accuracy-spread", FAIL, sentence)
        elif not stability.parsed_nothing:
            yield Finding("max-accuracy-spread", NOTE, _spread(stability) + ".")


def _answers(item: AnsweredItem) -> str:
    """`"42" 40 times, no answer 8 times`: parsed answers, most common first."""
    named = [
        f"{'no answer' if one.answer is None else quoted(one.answer)} "
        f"{count(one.completions, 'time')}"
        for one in item.answers[:MOST_EXAMPLES]
    ]
    more = len(item.answers) - MOST_EXAMPLES
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _spread(stability: AnswerStability) -> str:
    """How far the load moves the score, and the standard error of the set beside it."""
    best = max(stability.by_load, key=lambda load: load.accuracy)
    worst = min(stability.by_load, key=lambda load: load.accuracy)
    error = 100 * (stability.standard_error or 0.0)
    points = amount(100 * (best.accuracy - worst.accuracy), "point")
    moved = (
        f"The score moves by {points} with the load, "
        f"from {100 * worst.accuracy:.2f} at batch size {worst.batch_size} to "
        f"{100 * best.accuracy:.2f} at {best.batch_size}"
    )
    if best.accuracy == worst.accuracy:
        moved = f"The score is {100 * best.accuracy:.2f} at every batch size"
    return f"{moved} (standard error of the set {error:.3g})"


ANSWER_RULES: tuple[Rule, ...] = (answers_parsed, answers_unseen, too_many_flips, too_wide_a_spread)
