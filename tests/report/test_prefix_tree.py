"""Whatever is cut from a prefix tree is counted: no completion disappears."""

from __future__ import annotations

import pytest

from detcheck.analysis.results import Analysis, Group
from detcheck.report.prefix_tree import END, REST, Branch, TreeLimits, branches, prune


def pruned(group: Group, leaves: int, depth: int = 99, children: int = 99) -> Branch:
    root = branches(group)
    assert root is not None
    return prune(root, TreeLimits(leaves, depth, children))


@pytest.mark.parametrize("leaves", [2, 3, 7, 20, 500])
@pytest.mark.parametrize("children", [2, 5, 99])
def test_counts_are_kept_at_every_branch(eighty: Analysis, leaves: int, children: int) -> None:
    root = pruned(eighty.groups[0], leaves, children=children)
    for branch in root.walk():
        if branch.children:
            assert sum(child.count for child in branch.children) == branch.count
            assert sum(child.variants for child in branch.children) == branch.variants
            assert len(branch.children) <= children
    assert sum(1 for _ in root.leaves()) <= leaves


def test_with_room_every_variant_is_a_leaf(eighty: Analysis) -> None:
    group = eighty.groups[0]
    leaves = list(pruned(group, 500).leaves())
    assert len(leaves) == group.distinct
    assert not any(leaf.collapsed or leaf.kind == REST for leaf in leaves)


def test_the_tail_collapses_into_a_count(eighty: Analysis) -> None:
    root = pruned(eighty.groups[0], 6)
    rest = [branch for branch in root.walk() if branch.kind == REST]
    assert rest
    assert all(branch.label == f"… {branch.variants} more answers" for branch in rest)


def test_the_reference_path_is_marked_once_at_each_depth(story: Analysis) -> None:
    root = pruned(story.groups[0], 99)
    depths = [branch.depth for branch in root.walk() if branch.on_reference]
    assert depths == list(range(len(depths)))
    assert len(depths) > 2


def test_one_variant_is_a_trunk_alone(silent: Analysis) -> None:
    root = pruned(silent.groups[0], 12)
    assert (root.children, root.collapsed, root.on_reference) == ((), False, True)


def test_depth_is_limited(eighty: Analysis) -> None:
    root = pruned(eighty.groups[0], 99, depth=2)
    assert max(branch.depth for branch in root.walk()) == 2
    assert any(branch.collapsed for branch in root.walk())


def test_a_strict_prefix_is_shown_as_an_end(prefixes: Analysis) -> None:
    root = pruned(prefixes.groups[0], 12)
    assert END in {branch.kind for branch in root.children}
