"""The figures of a report: which ones each prompt gets, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from detcheck.analysis.results import Analysis, Group
from detcheck.report import figure_style as look
from detcheck.report.cost_figure import cost_beside_benefit
from detcheck.report.divergence_figure import divergences
from detcheck.report.figure_style import Drawing
from detcheck.report.load_figures import agreement, distinct_by_batch_size
from detcheck.report.seeds_figure import seeds_by_load
from detcheck.report.tree_figure import prefix_tree
from detcheck.report.variant_figure import variants_by_rank

MAX_PROMPTS = 8
"""Prompts that get figures; the tables have them all."""


def draw_all(
    analysis: Analysis, prompt_indices: Sequence[int] | None = None
) -> dict[int, list[Drawing]]:
    """The figures of the first MAX_PROMPTS of `prompt_indices`, by prompt index.

    Without `prompt_indices`, of the first prompts of the run.
    """
    prompts = list(dict.fromkeys(group.prompt_index for group in analysis.groups))
    several = len(prompts) > 1
    chosen = prompts if prompt_indices is None else prompt_indices
    with look.style():
        return {
            index: _draw_prompt(analysis, index, f"prompt{index + 1}_" if several else "")
            for index in chosen[:MAX_PROMPTS]
        }


def _draw_prompt(analysis: Analysis, prompt_index: int, prefix: str) -> list[Drawing]:
    groups = [group for group in analysis.groups if group.prompt_index == prompt_index]
    drawings = [
        prefix_tree(most_varied(groups), analysis.run.experiment.temperature, prefix),
        variants_by_rank(groups, prefix),
        divergences(groups, prefix),
        distinct_by_batch_size(groups, prefix),
        cost_beside_benefit(groups, prefix),
        seeds_by_load(groups, prefix),
        agreement(analysis, prompt_index, prefix),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def most_varied(groups: Sequence[Group]) -> Group:
    """The group with the most variants, whose tree is worth seeing; stock if several have as many.

    `groups` are those of one prompt, stock first.
    """
    return max(groups, key=lambda group: group.distinct)
