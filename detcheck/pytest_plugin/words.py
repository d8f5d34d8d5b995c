"""The text of a failed determinism test: the reasons, the tree of answers, the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from detcheck.analysis.results import Group, TreeNode
from detcheck.gate.verdict import Verdict
from detcheck.rundir import Run
from detcheck.text import one_line

LONGEST_BRANCH = 60
"""Characters that are shown of a branch of the prefix tree."""
DEEPEST_BRANCH = 4
WIDEST_BRANCHING = 4
MOST_TREES = 3
"""Prompts whose trees are shown."""


def explained(verdict: Verdict, run: Run) -> str:
    """The reasons of the verdict, the tree of answers, and the next commands to run."""
    first, *others = verdict.reasons
    lines = [f"detcheck: {verdict.value}: {first}", *(f"  {reason}" for reason in others)]
    worst = [judged.group for judged in verdict.groups if judged.value != "pass"]
    for group in worst[:MOST_TREES]:
        lines += _tree(group)
    path = shlex.quote(str(run.path))
    lines += ["", f"Next: detcheck report {path}"]
    if any(group.divergences for group in worst):
        script = "" if run.traits.ops_visible else " --repro upstream"
        lines.append(f"      detcheck trace {path}{script}")
    return "\n".join(lines)


def _tree(group: Group) -> Iterator[str]:
    """The prefix tree of the answers to one prompt, a branch a line."""
    if group.tree is None or len(group.variants) < 2:
        return
    yield ""
    yield f"{group.name}: {group.distinct} different answers in {group.completions} completions"
    yield from _branch(group.tree, 0)


def _branch(node: TreeNode, depth: int) -> Iterator[str]:
    shown = _shortened(one_line(node.text), begins=depth == 0)
    yield f"  {node.count:>4}× {'  ' * depth}“{shown}”"
    if depth < DEEPEST_BRANCH:
        for child in node.children[:WIDEST_BRANCHING]:
            yield from _branch(child, depth + 1)


def _shortened(text: str, *, begins: bool) -> str:
    """A branch's text; if it is long, its end if all answers begin with it, else its start."""
    if len(text) <= LONGEST_BRANCH:
        return text
    return f"…{text[-LONGEST_BRANCH:]}" if begins else f"{text[:LONGEST_BRANCH]}…"
