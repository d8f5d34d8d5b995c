"""All that a report says of a run, built once: HTML, Markdown and the terminal lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detcheck.analysis.results import Analysis, Group
from detcheck.environment import settings
from detcheck.report.answers import AnswersView, answers_of
from detcheck.report.card import Card, most_varied_of
from detcheck.report.cards import six_cards
from detcheck.report.checks import TrustCheck, doubt_about, trust_checks
from detcheck.report.overview import PromptRow, groups_by_prompt, overview
from detcheck.report.prompt_view import PromptView, prompt_view
from detcheck.report.reproduce import command
from detcheck.report.roles import control_groups, cure_groups
from detcheck.report.text import clip, traffic_words
from detcheck.text import count


@dataclass(frozen=True, slots=True)
class ReportView:
    """Everything that a report says of one run: words and numbers, without markup."""

    headline: str
    about: str
    """The setting in one line."""
    cards: tuple[Card, ...]
    prompts: tuple[PromptView, ...]
    """Most varied first."""
    checks: tuple[TrustCheck, ...]
    command: str
    """The shell command that runs the experiment again."""
    environment: tuple[tuple[str, str], ...]
    """(name, value) of every setting that was recorded."""
    answers: AnswersView | None
    """The parsed answers; None if no parser is named."""
    run_id: str
    created: str
    detcheck_version: str

    @property
    def rows(self) -> tuple[PromptRow, ...]:
        """The table of prompts, most varied first."""
        return tuple(prompt.row for prompt in self.prompts)

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels settings of the run, stock first."""
        return tuple(one.kernels for one in self.prompts[0].row.groups)


def build_view(analysis: Analysis, answer: str | None = None) -> ReportView:
    """The view of an analysed run, finished or not.

    `answer` names the parser of answers; by default the one that the experiment names, if any.
    """
    run = analysis.run
    return ReportView(
        headline=headline(analysis),
        about=about(analysis),
        cards=six_cards(analysis),
        prompts=_prompts(analysis),
        checks=trust_checks(analysis),
        command=command(run.experiment, run.target),
        environment=tuple(environment_rows(run.environment)),
        answers=answers_of(analysis, answer),
        run_id=run.run_id,
        created=run.created,
        detcheck_version=run.detcheck_version,
    )


def _prompts(analysis: Analysis) -> tuple[PromptView, ...]:
    groups = groups_by_prompt(analysis)
    return tuple(prompt_view(row, groups[row.prompt_index]) for row in overview(analysis))


def headline(analysis: Analysis) -> str:
    """The finding in one line; it begins with `Inconclusive` if one answer proves nothing.

    With several seeds, answers are counted for each seed by itself.
    """
    control, cure = control_groups(analysis), cure_groups(analysis)
    if not any(group.completions for group in analysis.groups):
        return "No answer came back"
    worst = most_varied_of(control)
    if not worst.distinct:
        return f"No answer came back with {worst.kernels} kernels"
    cured = [group for group in cure if group.kernels != worst.kernels and group.completions]
    left = max((group.distinct_within_seed for group in cured), default=0)
    if max(worst.distinct_within_seed, left) == 1:
        return _one_answer(analysis, control)
    finding = _finding(worst, several=len(control) > 1)
    if not cured:
        return finding
    doubt = doubt_about(analysis, cured) if left == 1 else ""
    return f"{finding}; {left:,} with {cured[0].kernels} kernels" + (
        f", inconclusive: {doubt}" if doubt else ""
    )


def _finding(worst: Group, *, several: bool) -> str:
    """How many answers the control gave; `worst` has the most of `several` prompts."""
    sample = _sample(worst)
    if worst.distinct_within_seed == 1:
        return "One answer" + _to_each(several=several, sample=sample)
    finding = f"{count(worst.distinct_within_seed, 'different answer')} to one "
    finding += sample or "question"
    return f"Up to {finding}" if several or sample else finding


def _sample(group: Group) -> str:
    """The word for a wanted sample, `seed` or `choice`; empty if there is only one."""
    return group.sample if len(group.by_seed) > 1 else ""


def _to_each(*, several: bool, sample: str) -> str:
    """The units that have one answer each: ` to each question`, ` to each seed`."""
    if sample:
        return f" to each {sample}"
    return " to each question" if several else ""


def _one_answer(analysis: Analysis, control: tuple[Group, ...]) -> str:
    """The headline if no prompt has a second answer under any kernels."""
    each = _to_each(several=len(control) > 1, sample=_sample(control[0]))
    doubt = doubt_about(analysis, analysis.groups)
    if not doubt:
        return f"One answer{each}, whatever the load"
    completions = count(sum(group.completions for group in control), "completion")
    return f"Inconclusive: one answer{each} in {completions}, {doubt}"


def about(analysis: Analysis) -> str:
    """The setting in one line."""
    experiment, target = analysis.run.experiment, analysis.run.target
    dtype = analysis.run.model.dtype or getattr(target, "dtype", None)
    facts = [
        clip(target.model_name, 60),
        f"{target.engine} engine",
        ", ".join(clip(url, 60) for url in getattr(target, "endpoints", ())),
        f"batches of {traffic_words(experiment.traffic)}",
        f"batch sizes {', '.join(map(str, experiment.batch_sizes))}",
        count(experiment.max_new_tokens, "token"),
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
