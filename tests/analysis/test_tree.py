from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.analysis.results import TreeNode
from detcheck.analysis.tree import prefix_tree
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
