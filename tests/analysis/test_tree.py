from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, UNKNOWN, TreeNode
from detcheck.analysis.tree import PrefixTree, prefix_tree
from detcheck.rundir import StoredVariant

from .answers import stored, stored_text

COUNTED_TOKENS = st.dictionaries(
    st.lists(st.integers(0, 2), max_size=8).map(tuple), st.integers(1, 9), min_size=1, max_size=12
)
COUNTED_TEXTS = st.dictionaries(
    st.text("ab\u2028é\U0001f600", max_size=8), st.integers(1, 9), min_size=1, max_size=12
)


def paths(root: TreeNode) -> Counter[str]:
    """Text from the root to every end, with how many completions end there."""
    found: Counter[str] = Counter()
    pending = [("", root)]
    while pending:
        before, node = pending.pop()
        text = before + node.text
        if node.ends or not node.children:
            found[text] += node.ends if node.children else node.count
        pending.extend((text, child) for child in node.children)
    return found


def nodes(root: TreeNode) -> list[TreeNode]:
    found = [root]
    for node in found:
        found.extend(node.children)
    return found


def check(
    make: Callable[..., StoredVariant], counted: dict[str, int] | dict[tuple[int, ...], int]
) -> None:
    variants = [make(key) for key in counted]
    root = prefix_tree(variants, list(counted.values()))
    assert root is not None
    expected = Counter(
        {variant.text: n for variant, n in zip(variants, counted.values(), strict=True)}
    )
    assert paths(root) == expected
    assert (root.start, root.count, root.variants) == (0, expected.total(), len(variants))
    for node in nodes(root):
        check_node(node)


def check_node(node: TreeNode) -> None:
    children = node.children
    assert node.start <= node.stop
    assert all(child.start == node.stop < child.stop for child in children)
    assert all(a.count >= b.count for a, b in pairwise(children))
    if children:
        assert node.count == node.ends + sum(child.count for child in children)
        assert node.variants == (node.ends > 0) + sum(child.variants for child in children)
        assert len(children) + (node.ends > 0) > 1  # compressed: no node without a branch
    else:
        assert (node.variants, node.ends) == (1, 0)


@given(COUNTED_TOKENS)
def test_every_path_is_a_variant_and_counts_add_up(counted: dict[tuple[int, ...], int]) -> None:
    check(stored, counted)


@given(COUNTED_TEXTS)
def test_the_same_for_text_without_tokens(counted: dict[str, int]) -> None:
    check(stored_text, counted)


def test_no_variants_no_tree() -> None:
    assert prefix_tree([], []) is None


def test_one_variant_is_a_leaf() -> None:
    assert prefix_tree([stored([5, 6])], [4]) == TreeNode("5 6 ", 0, 2, 4, 1, (), 0)


def test_branches_stand_where_variants_part_most_common_first() -> None:
    root = prefix_tree([stored([1, 2, 3]), stored([1, 2, 4, 5]), stored([1, 2])], [3, 7, 2])
    assert root == TreeNode(
        "1 2 ",
        0,
        2,
        12,
        3,
        (TreeNode("4 5 ", 2, 4, 7, 1, (), 0), TreeNode("3 ", 2, 3, 3, 1, (), 0)),
        2,
    )


@pytest.mark.parametrize("parts_late", [True, False])
def test_a_chain_deeper_than_the_stack_needs_no_recursion(parts_late: bool) -> None:
    def chain(index: int) -> Sequence[int]:
        return [0] * index + [1] if parts_late else [0] * (index + 1)

    num_variants = sys.getrecursionlimit() + 200
    root = prefix_tree([stored(chain(i)) for i in range(num_variants)], [1] * num_variants)
    assert root is not None
    assert root.count == root.variants == num_variants
    depth, node = 1, root
    while node.children:
        node = max(node.children, key=lambda child: child.variants)
        depth += 1
    assert depth >= num_variants - 1


def naive_branchings(
    paths_of: list[tuple[int, ...]], counts: list[int]
) -> Counter[tuple[int, int, int]]:
    """(position, completions of the most common branch, of the other), straight from its words."""
    found: Counter[tuple[int, int, int]] = Counter()
    for position in range(max(map(len, paths_of)) + 1):
        prefixes = {path[:position] for path in paths_of if len(path) >= position}
        for prefix in prefixes:
            ways: Counter[int | None] = Counter()
            for path, count in zip(paths_of, counts, strict=True):
                if path[:position] == prefix and len(path) >= position:
                    ways[path[position] if position < len(path) else None] += count
            (_, most), *others = ways.most_common()
            found.update((position, most, count) for _, count in others)
    return found


@given(COUNTED_TOKENS)
def test_every_branching_of_the_tree_is_found(counted: dict[tuple[int, ...], int]) -> None:
    ordered = sorted(counted, key=lambda path: -counted[path])
    counts = [counted[path] for path in ordered]
    found = PrefixTree([stored(path) for path in ordered], counts).branchings(None)
    assert len(found) == len(counted) - 1
    assert Counter(
        (branching.position, branching.common_completions, branching.completions)
        for branching in found
    ) == naive_branchings(ordered, counts)
    assert [b.position for b in found] == sorted(b.position for b in found)


def test_a_branching_below_the_first_is_judged_by_the_answers_that_pass_through_it() -> None:
    """The reference goes its own way at token 0, far from a tie; the others part at token 2."""
    variants = [
        stored([1, 1, 1], gaps=[0.0, 8.0, 8.0]),
        stored([2, 1, 5], gaps=[0.0, 8.0, 0.125], runners_up=[1, 0, 6]),
        stored([2, 1, 6], gaps=[0.0, 8.0, 0.25]),
        stored([2, 1, 7], gaps=[0.0, 8.0, 3.0]),
    ]
    first, *others = PrefixTree(variants, [9, 5, 2, 1]).branchings(0.5)
    assert (first.position, first.flip.kind, first.completions, first.variants) == (0, TIE, 8, 3)
    assert (first.common_rank, first.rank) == (1, 2)
    assert [(b.position, b.flip.kind, b.common_rank, b.rank) for b in others] == [
        (2, NEAR_TIE, 2, 3),
        (2, CONFIDENT, 2, 4),
    ]
    near = others[0]
    assert (near.context, near.common_piece, near.piece) == ("2 1 ", "5 ", "6 ")
    assert (near.common_completions, near.completions, near.variants) == (5, 2, 1)
    assert (near.flip.reference_gap, near.flip.variant_gap) == (0.125, 0.25)
    assert near.flip.runner_up_won is True


def test_answers_that_end_at_a_node_are_a_branch() -> None:
    [branching] = PrefixTree([stored([1, 2, 3]), stored([1, 2])], [4, 1]).branchings(0.1)
    assert (branching.position, branching.piece, branching.flip.kind) == (2, "", UNKNOWN)
    [branching] = PrefixTree([stored([1, 2]), stored([1, 2, 3])], [4, 1]).branchings(0.1)
    assert (branching.common_piece, branching.piece) == ("", "3 ")
