"""A suite of many prompts, made of the groups of an analysis of a few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from msgspec import structs

from detcheck.analysis.results import Analysis, Group
from detcheck.report.overview import groups_by_prompt


def suite_of(analysis: Analysis, num_prompts: int) -> Analysis:
    """`num_prompts` prompts whose answers are those of `analysis`' prompts in turn."""
    prompts = tuple(f"Question {number}: tell me a story." for number in range(1, num_prompts + 1))
    experiment = structs.replace(analysis.run.experiment, prompts=prompts)
    groups = tuple(_groups(analysis, prompts))
    return replace(analysis, run=replace(analysis.run, experiment=experiment), groups=groups)


def _groups(analysis: Analysis, prompts: tuple[str, ...]) -> Iterator[Group]:
    originals = list(groups_by_prompt(analysis).values())
    for index, prompt in enumerate(prompts):
        for group in originals[index % len(originals)]:
            yield replace(group, prompt_index=index, prompt=prompt)
