"""Two runs side by side: which conditions agree, and where their references diverge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from detcheck.analysis.common_answers import Answers, common_answers, common_limit
from detcheck.analysis.divergence import two_ways
from detcheck.analysis.model_differences import model_differences
from detcheck.analysis.results import Analysis, Group
from detcheck.analysis.variants import tally
from detcheck.completion import first_divergence
from detcheck.environment import differences
from detcheck.errors import UsageError
from detcheck.rundir import Run, StoredVariant
from detcheck.text import quoted

TOKENS_BEFORE = 6
TOKENS_AFTER = 5
"""Tokens shown before and after a divergence."""
CHARACTERS_BEFORE = 30
CHARACTERS_AFTER = 25
"""The same for answers without tokens."""
DECISIVE = (
    "model",
    "engine",
    "traffic",
    "arrivals",
    "endpoints",
    "tensor_parallel",
    "vllm_executor",
    "dtype",
    "device",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seeds",
    "load_seed",
    "chat_template",
)
"""Fields of an experiment that can change its answers or its load."""


@dataclass(frozen=True, slots=True)
class PromptDivergence:
    """The words at which the answers of two runs to one prompt diverge."""

    position: int
    """First token at which they differ; first character if one has no token ids."""
    unit: str
    """`token` or `character`."""
    context: str
    """Text that both share just before."""
    left: str
    """The next words of the first; empty if it ends here."""
    right: str
    """The next words of the second; empty if it ends here."""

    @property
    def sentence(self) -> str:
        """`they part at token 32, after "…": "coastal town" / ", coastal town"`."""
        ways = two_ways(self.context, self.left, self.right)
        return f"they part at {self.unit} {self.position}{ways}"


@dataclass(frozen=True, slots=True)
class GroupPair:
    """One prompt in both runs, each under one kernels setting."""

    prompt: str
    left: Group
    right: Group
    shared: int
    """Distinct answers that both runs gave, up to the smaller token limit."""
    agreement: float | None
    """Chance that one completion of each are equal; None if a run gave no completion."""
    divergence: PromptDivergence | None
    """Where the references diverge; None if they are equal or a run gave no completion."""

    @property
    def references_equal(self) -> bool:
        """True if both runs have the same reference answer."""
        return None not in (self.left.reference, self.right.reference) and self.divergence is None


@dataclass(frozen=True, slots=True)
class ConditionPair:
    """The same prompt, kernels, batch size and placement in both runs."""

    prompt: str
    kernels: str
    batch_size: int
    agreement: float | None
    """Chance that one completion of each are equal; None if a run gave no completion."""
    placement: str = ""
    """Empty if the grid has only one place."""


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The common ground of two runs, and their differences."""

    left: Run
    right: Run
    pairs: tuple[GroupPair, ...]
    conditions: tuple[ConditionPair, ...]
    only_left: tuple[str, ...]
    """Prompts that only the first run has."""
    only_right: tuple[str, ...]
    experiment_differences: tuple[str, ...]
    environment_differences: tuple[str, ...]
    model_differences: tuple[str, ...] = ()
    """What is known of both models and differs, and prompts that became other token ids."""
    compared_tokens: int | None = None
    """The smaller token limit, if the limits differ: no answer is compared beyond it."""


def parting(left: StoredVariant, right: StoredVariant) -> PromptDivergence | None:
    """Where two answers diverge; None if they are the same.

    By tokens if both have them, else by characters of the text.
    """
    if left.token_ids is None or right.token_ids is None:
        return divergence_of_text(left.text, right.text)
    position = first_divergence(left.token_ids.tolist(), right.token_ids.tolist())
    if position is None:
        return None
    stop = position + TOKENS_AFTER
    return PromptDivergence(
        position,
        "token",
        left.piece(max(0, position - TOKENS_BEFORE), position),
        left.piece(position, stop),
        right.piece(position, stop),
    )


def compare(left: Analysis, right: Analysis) -> RunComparison:
    """Hold two runs side by side; raises UsageError if they have no prompt in common.

    If their token limits differ, answers are compared up to the smaller limit.
    """
    ours, theirs = left.run.experiment, right.run.experiment
    common = [prompt for prompt in ours.prompts if prompt in theirs.prompts]
    if not common:
        raise UsageError(
            f"{left.run.path} and {right.run.path} have no prompt in common: nothing to compare."
        )
    answers = {prompt: common_answers(left.run, right.run, prompt) for prompt in common}
    return RunComparison(
        left=left.run,
        right=right.run,
        pairs=tuple(
            pair for prompt in common for pair in _group_pairs(left, right, prompt, answers[prompt])
        ),
        conditions=tuple(_condition_pairs(left.run, right.run, answers)),
        only_left=tuple(prompt for prompt in ours.prompts if prompt not in common),
        only_right=tuple(prompt for prompt in theirs.prompts if prompt not in common),
        experiment_differences=tuple(experiment_differences(left.run, right.run)),
        environment_differences=tuple(differences(left.run.environment, right.run.environment)),
        model_differences=tuple(model_differences(left.run, right.run)),
        compared_tokens=common_limit(left.run, right.run),
    )


def experiment_differences(left: Run, right: Run) -> list[str]:
    """Settings of two runs that can change an answer and differ, a phrase each."""
    pairs = ((name, left.setting(name), right.setting(name)) for name in DECISIVE)
    return [
        f"{name.replace('_', ' ')} {in_words(ours)} → {in_words(theirs)}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def in_words(setting: object) -> str:
    """The value of a setting of an experiment as a person reads it."""
    if isinstance(setting, str):
        return quoted(setting)
    if isinstance(setting, tuple):
        return ", ".join(map(str, setting)) or "none"
    if isinstance(setting, bool):
        return "on" if setting else "off"
    return "the embedded model" if setting is None else str(setting)


def groups_of(analysis: Analysis, prompt: str) -> dict[str, Group]:
    """The groups of one prompt, by kernels."""
    return {group.kernels: group for group in analysis.groups if group.prompt == prompt}


def _group_pairs(
    left: Analysis, right: Analysis, prompt: str, answers: tuple[Answers, Answers]
) -> Iterator[GroupPair]:
    """Pairs with the same kernels; every pair if the runs have no kernels in common."""
    ours, theirs = groups_of(left, prompt), groups_of(right, prompt)
    shared = [kernels for kernels in ours if kernels in theirs]
    names = [(name, name) for name in shared] or [(a, b) for a in ours for b in theirs]
    seeds = _common_seeds(left.run, right.run)
    for ours_name, theirs_name in names:
        yield _pair(prompt, ours[ours_name], theirs[theirs_name], answers, seeds)


def _common_seeds(left: Run, right: Run) -> Collection[int]:
    """Seeds within which answers are compared; empty if seeds play no part.

    At temperature 0 a seed changes nothing, and runs without a common seed can only be compared as
    a whole. The choices of one seed take the place of seeds if both runs have several.
    """
    if 0 in (left.experiment.temperature, right.experiment.temperature):
        return ()
    if left.by_choice != right.by_choice:  # the number of a choice is no seed
        return ()
    if left.by_choice and left.experiment.seeds != right.experiment.seeds:
        return ()
    return [seed for seed in left.samples if seed in right.samples]


def _pair(
    prompt: str,
    left: Group,
    right: Group,
    answers: tuple[Answers, Answers],
    seeds: Collection[int],
) -> GroupPair:
    ours, theirs = (
        _counts(group, of, seeds) for group, of in zip((left, right), answers, strict=True)
    )
    shared = {name for _, name in ours} & {name for _, name in theirs}
    divergence = next(_divergences(left, right, answers, seeds), None)
    return GroupPair(prompt, left, right, len(shared), _agreement(ours, theirs), divergence)


def _divergences(
    left: Group, right: Group, answers: tuple[Answers, Answers], seeds: Collection[int]
) -> Iterator[PromptDivergence]:
    """Where the references diverge, seed by seed."""
    sides = [(left.reference, right.reference)]
    if seeds:
        ours, theirs = ({s.seed: s.reference for s in group.by_seed} for group in (left, right))
        sides = [(ours[seed], theirs[seed]) for seed in seeds]
    for a, b in sides:
        if a is not None and b is not None:
            found = parting(answers[0][a.variant.fingerprint], answers[1][b.variant.fingerprint])
            if found is not None:
                yield found


SeedCounts = Counter[tuple[int | None, str]]
"""Completions by (seed, fingerprint of the answer as compared); the seed is None if it plays no
part."""


def _counts(group: Group, answers: Answers, seeds: Collection[int]) -> SeedCounts:
    """The completions of a group that answer one of `seeds`; all if `seeds` is empty."""
    counts: SeedCounts = Counter()
    for split in group.by_seed:
        if not seeds or split.seed in seeds:
            for counted in split.variants:
                name = answers[counted.variant.fingerprint].fingerprint
                counts[split.seed if seeds else None, name] += counted.count
    return counts


_CellKey = tuple[str, str, int, str]
"""(prompt, kernels, batch size, placement)."""


def _condition_pairs(
    left: Run, right: Run, answers: Mapping[str, tuple[Answers, Answers]]
) -> Iterator[ConditionPair]:
    """The conditions that both runs have, seeds taken together."""
    seeds = _common_seeds(left, right)
    ours = _by_condition(left, {prompt: of for prompt, (of, _) in answers.items()}, seeds)
    theirs = _by_condition(right, {prompt: of for prompt, (_, of) in answers.items()}, seeds)
    for key, counts in ours.items():
        other = theirs.get(key)
        if other is not None:
            prompt, kernels, batch_size, placement = key
            agreement = _agreement(counts, other)
            yield ConditionPair(prompt, kernels, batch_size, agreement, placement)


def _by_condition(
    run: Run, answers: Mapping[str, Answers], seeds: Collection[int]
) -> dict[_CellKey, SeedCounts]:
    """The completions of each condition whose prompt is in `answers`."""
    pairs = tally(run)
    found: dict[_CellKey, SeedCounts] = {}
    for index, record in enumerate(run.conditions):
        prompt = run.experiment.prompts[record.prompt_index]
        if prompt not in answers or (seeds and run.sample_of(record) not in seeds):
            continue
        key = (prompt, record.kernels, record.batch_size, record.placement)
        counts = found.setdefault(key, Counter())
        here = pairs.of([index])
        for variant, number in zip(here.variant.tolist(), here.count.tolist(), strict=True):
            name = answers[prompt][run.variants[variant].fingerprint].fingerprint
            counts[run.sample_of(record) if seeds else None, name] += number
    return found


def _agreement(left: SeedCounts, right: SeedCounts) -> float | None:
    """Chance that a completion of each, of the same seed, are equal."""
    totals = []
    for counts in (left, right):
        total: Counter[int | None] = Counter()
        for (seed, _), number in counts.items():
            total[seed] += number
        totals.append(total)
    pairs = sum(count * totals[1][seed] for seed, count in totals[0].items())
    return sum(count * right[key] for key, count in left.items()) / pairs if pairs else None


def divergence_of_text(left: str, right: str) -> PromptDivergence | None:
    """Where two texts diverge, by characters; None if they are equal."""
    position = first_divergence(left, right)
    if position is None:
        return None
    before, stop = max(0, position - CHARACTERS_BEFORE), position + CHARACTERS_AFTER
    return PromptDivergence(
        position, "character", left[before:position], left[position:stop], right[position:stop]
    )
