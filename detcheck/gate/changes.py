"""Holding a run to a baseline: which prompts both have, and which answers changed, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detcheck.analysis.compare import in_words
from detcheck.analysis.divergence import two_ways
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE, Finding
from detcheck.analysis.results import Analysis, Group, SeedSplit, VariantCount
from detcheck.completion import first_divergence
from detcheck.environment import differences
from detcheck.errors import UsageError
from detcheck.experiment import NO_FILTERS, Experiment
from detcheck.gate.baseline import (
    AcceptedAnswer,
    AcceptedPrompt,
    Baseline,
    Key,
    check_no_choices,
    key_of,
    machine_of,
    prompt_digest,
)
from detcheck.gate.given import GateInput
from detcheck.gate.identity import dtype_of, models_of
from detcheck.rundir import Run, StoredVariant
from detcheck.text import count, quoted

BASELINE = "baseline"
BEFORE, AFTER = 30, 25
"""Characters shown before and after a divergence."""
MOST_NAMED = 5
"""Prompts that a sentence names before it counts the rest."""


def check_asked(
    baseline: Baseline, experiment: Experiment, *, chat_template: bool | None = None
) -> None:
    """Raise UsageError if `experiment` asks something else than the baseline was asked.

    This is what a run's file says before its model is known; see `check_same_question`.
    """
    _check_equal(_asked(baseline, experiment, bool(chat_template)))
    known = {(entry.prompt, entry.kernels) for entry in baseline.prompts}
    if not any(prompt in experiment.prompts for prompt, _ in known):
        raise _nothing_to_hold(experiment)


def check_same_question(baseline: Baseline, run: Run) -> None:
    """Raise UsageError if the baseline was asked something else, so that no answer compares."""
    pairs = [
        *_models(baseline, run),
        *_asked(baseline, run.experiment, bool(run.setting("chat_template"))),
    ]
    if baseline.dtype and dtype_of(run):  # a baseline may be older than the record of it
        pairs.append(("dtype", baseline.dtype, dtype_of(run)))
    _check_equal(pairs)


Pairs = list[tuple[str, Any, Any]]
"""(name, value of the baseline, value of the run)."""


def _asked(baseline: Baseline, experiment: Experiment, chat_template: bool) -> Pairs:
    return [
        ("token limit", baseline.max_new_tokens, experiment.max_new_tokens),
        ("temperature", baseline.temperature, experiment.temperature),
        ("chat template", baseline.chat_template, chat_template),
        *(
            (name, baseline.filters.get(name, off), experiment.filters.get(name, off))
            for name, off in NO_FILTERS.items()
        ),
    ]


def _check_equal(pairs: Pairs) -> None:
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UsageError(
                f"The baseline was asked something else: its {name} is {_shown(theirs)}, the "
                f"run's is {_shown(ours)}. Give the baseline of the same question, or accept the "
                "run in a new file by `detcheck baseline update`."
            )


def _models(baseline: Baseline, run: Run) -> Pairs:
    """What must agree about the model: its weights if both are known, else its name."""
    ours, theirs = run.model.weights_digest, baseline.weights_digest
    if ours and theirs:
        return [("model's digest of weights", theirs, ours)]
    names = models_of(run)
    if baseline.model in names and baseline.revision and run.model.revision:
        return [("model's revision", baseline.revision, run.model.revision)]
    same = baseline.model in names or (baseline.model is None and not names)
    return [] if same else [("model", baseline.model, names[0] if names else None)]


def check_held(baseline: Baseline, analysis: Analysis, groups: Sequence[Group]) -> None:
    """Raise UsageError if the baseline cannot hold any of `groups`."""
    if baseline.run_id == analysis.run.run_id:
        raise UsageError("The baseline is of the run itself, so it shows nothing: give another.")
    check_same_question(baseline, analysis.run)
    check_no_choices(analysis.run)
    known = dict.fromkeys(entry.kernels for entry in baseline.prompts)
    for name in dict.fromkeys(group.kernels for group in groups):
        if name not in known:
            raise UsageError(
                f"The baseline has no {name} kernels, only {', '.join(known)}: choose others by "
                "`kernels`."
            )
    accepted = baseline.by_key()
    if not any(held_parts(accepted, analysis.run, group) for group in groups):
        raise _nothing_to_hold(analysis.run.experiment)


def _nothing_to_hold(experiment: Experiment) -> UsageError:
    seeds = " with its seeds" if experiment.temperature > 0 else ""
    return UsageError(
        f"The baseline has none of the run's prompts{seeds}: there is nothing to hold."
    )


def changed_answers(given: GateInput) -> Iterator[Finding]:
    """Fails a group that gave an answer which the baseline does not accept."""
    baseline = given.baseline
    if baseline is None:
        return
    run = given.analysis.run
    for phrase in _settings_changed(baseline, run):
        yield Finding(BASELINE, NOTE, f"The environment differs from the baseline's: {phrase}.")
    accepted = baseline.by_key()
    for group in given.groups:
        for entry, split in held_parts(accepted, run, group):
            digest = prompt_digest(run, group.prompt_index)
            changed = digest != entry.token_ids_digest
            if not (digest and entry.token_ids_digest):
                changed = bool(_text_tools_changed(baseline, run))
            yield _asked_something_else(group) if changed else _held(entry, group, split)
    yield from _prompts_of_one(baseline, given)


def held_parts(
    accepted: Mapping[Key, AcceptedPrompt], run: Run, group: Group
) -> list[tuple[AcceptedPrompt, SeedSplit]]:
    """The accepted answers to each seed of a group, and the answers that came; of known seeds."""
    parts = ((accepted.get(key_of(run, group, split)), split) for split in group.by_seed)
    return [(entry, split) for entry, split in parts if entry is not None and split.variants]


def change_in_words(entry: AcceptedPrompt, variant: StoredVariant) -> str:
    """The place at which an answer leaves the most similar accepted answer.

    Such as `they diverge at token 5, after "a small": "coastal town" / ", coastal town"`.
    """
    nearest = max(entry.answers, key=lambda answer: _shared(answer, variant))
    position = first_divergence(nearest.preview, variant.text)
    if position is None:
        return "the text is the same, its tokens are not"
    if position == len(nearest.preview) and not nearest.whole:
        return f"they agree in the first {position:,} characters, which is all the baseline keeps"
    word = start_of_word(variant.text, position)
    start, stop = max(0, word - BEFORE), position + AFTER
    ways = two_ways(variant.text[start:word], nearest.preview[word:stop], variant.text[word:stop])
    return f"they diverge at {_token_or_character(variant, position)}{ways}"


def _asked_something_else(group: Group) -> Finding:
    sentence = (
        "The model was asked something else than for the baseline: the same prompt became other "
        "token ids, as if its chat template had changed or held a date."
    )
    return Finding(BASELINE, INCONCLUSIVE, sentence, group)


def _text_tools_changed(baseline: Baseline, run: Run) -> list[str]:
    """The tokenizer and the chat template, as far as both are known and differ."""
    pairs = {
        "tokenizer": (baseline.tokenizer_digest, run.model.tokenizer_digest),
        "chat template": (baseline.chat_template_digest, run.model.chat_template_digest),
    }
    return [name for name, (theirs, ours) in pairs.items() if theirs and ours and theirs != ours]


def _held(entry: AcceptedPrompt, group: Group, split: SeedSplit) -> Finding:
    """The finding on one seed's answers."""
    seed = "" if entry.seed is None else f" to seed {entry.seed}"
    new = [counted for counted in split.variants if not entry.accepts(counted.variant)]
    if new:
        return Finding(BASELINE, FAIL, _changed(entry, split, new, seed), group)
    gone = len(entry.answers) - split.distinct
    unseen = f"; {gone} of its {len(entry.answers)} did not come back" if gone > 0 else ""
    sentence = f"Every answer{seed} is one that the baseline accepts{unseen}."
    return Finding(BASELINE, NOTE, sentence, group)


def _changed(
    entry: AcceptedPrompt, split: SeedSplit, new: Sequence[VariantCount], seed: str
) -> str:
    completions = sum(counted.count for counted in new)
    accepted = count(len(entry.answers), "answer")
    return (
        f"{count(len(new), 'answer')}{seed} ({completions} of {split.completions} completions) "
        f"that the baseline does not accept ({accepted} accepted): "
        f"{change_in_words(entry, new[0].variant)}."
    )


def _prompts_of_one(baseline: Baseline, given: GateInput) -> Iterator[Finding]:
    """Prompts that only the run has, or only the baseline."""
    run, accepted = given.analysis.run, baseline.by_key()
    parts = ((group, split) for group in given.groups for split in group.by_seed)
    asked = dict.fromkeys(key_of(run, group, split) for group, split in parts)
    if new := [key for key in asked if key not in accepted]:
        sentence = f"{_named(new)} not in the baseline, so nothing holds the answers."
        yield Finding(BASELINE, NOTE, sentence)
    judged = {group.kernels for group in given.groups}
    if gone := [key for key in accepted if key[1] in judged and key not in asked]:
        yield Finding(BASELINE, NOTE, f"{_named(gone)} in the baseline and not in the run.")


def _named(keys: Sequence[Key]) -> str:
    """`2 prompts ("One?", "Two?") are`; each with its seed if it was sampled."""
    different = list(dict.fromkeys((prompt, seed) for prompt, _, seed in keys))
    names = ", ".join(
        quoted(prompt) + ("" if seed is None else f" seed {seed}")
        for prompt, seed in different[:MOST_NAMED]
    )
    more = f" and {len(different) - MOST_NAMED} more" if len(different) > MOST_NAMED else ""
    verb = "is" if len(different) == 1 else "are"
    return f"{count(len(different), 'prompt')} ({names}{more}) {verb}"


def _settings_changed(baseline: Baseline, run: Run) -> Iterator[str]:
    engines = (baseline.engine, str(run.setting("engine")))
    if len(set(engines)) > 1:
        yield f"engine {' → '.join(engines)}"
    for name in _text_tools_changed(baseline, run):
        yield f"{name} is another one"
    theirs, ours = baseline.config_digest, run.model.config_digest
    if theirs and ours and theirs != ours:
        yield "model's config is another one"
    yield from differences(baseline.machine, machine_of(run))


def _shared(answer: AcceptedAnswer, variant: StoredVariant) -> int:
    """Characters that both begin with."""
    position = first_divergence(answer.preview, variant.text)
    return len(answer.preview) + 1 if position is None else position


def start_of_word(text: str, position: int) -> int:
    """The index at which the word around `position` begins, at most BEFORE characters earlier.

    It is `position` itself if the text there is written without spaces.
    """
    words = re.search(r"\w+$", text[max(0, position - BEFORE) : position])
    length = len(words.group()) if words else 0
    return position - length if length < min(position, BEFORE) else position


def _token_or_character(variant: StoredVariant, position: int) -> str:
    """`token 5`, or `character 24` if the tokens are not known."""
    ends = variant.token_ends
    if ends is None or not len(ends):
        return f"character {position}"
    return f"token {int((ends <= position).sum())}"


def _shown(value: object) -> str:
    return "not recorded" if value is None else in_words(value)
