"""The prefix tree of a group's variants: which text all share, where it branches, how many go on.

Compressed (a node is a stretch without a branch) and built without recursion: variants sorted by
their units stand next to those they share most with, and one pass with a stack over the lengths
of these shared prefixes gives the nodes. Linear in the number of units, after the sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from detcheck.analysis.divergence import Units, comparable, first_difference, units
from detcheck.analysis.results import TreeNode
from detcheck.rundir import StoredVariant


@dataclass(slots=True)
class _Node:
    """A node in the making; `stop` is where its children part, or its variant ends."""

    stop: int
    member: int
    """Some variant that passes through, whose text stands for all."""
    count: int = 0
    variants: int = 0
    ends: int = 0
    children: list[_Node] = field(default_factory=list)

    def adopt(self, child: _Node) -> None:
        self.children.append(child)
        self.count += child.count
        self.variants += child.variants


def prefix_tree(variants: Sequence[StoredVariant], counts: Sequence[int]) -> TreeNode | None:
    """Tree over distinct variants of one prompt, `counts[i]` completions of `variants[i]` each.

    The root is what all share, possibly nothing. None where there are no variants.
    """
    if not variants:
        return None
    variants = comparable(variants)
    rows = [units(variant) for variant in variants]
    order = sorted(range(len(rows)), key=lambda index: rows[index].astype(">i4").tobytes())
    root = _nodes([rows[index] for index in order], order, counts)
    return _freeze(root, variants)


def _nodes(rows: Sequence[Units], order: Sequence[int], counts: Sequence[int]) -> _Node:
    """Root of the tree over sorted `rows`; row i belongs to variant `order[i]`.

    The stack holds the path to the latest row, each node's `stop` larger than the one before.
    """
    path: list[_Node] = []
    for index, row in enumerate(rows):
        if path:
            shared = first_difference(rows[index - 1], row)
            # Equal rows (texts that only differed in their tokens) are one node.
            _branch(path, len(row) if shared is None else shared)
        variant = order[index]
        if path and path[-1].stop == len(row):
            node = path[-1]
        else:
            node = _Node(stop=len(row), member=variant)
            path.append(node)
        node.ends += counts[variant]
        node.count += counts[variant]
        node.variants += 1
    _branch(path, path[0].stop)
    return path[0]


def _branch(path: list[_Node], stop: int) -> None:
    """Close the nodes past `stop`, so that the path ends with a node that stops there."""
    while path[-1].stop > stop:
        closed = path.pop()
        if not path or path[-1].stop < stop:
            path.append(_Node(stop=stop, member=closed.member))
        path[-1].adopt(closed)


def _freeze(root: _Node, variants: Sequence[StoredVariant]) -> TreeNode:
    """Turn nodes into records, children before parents."""
    parents_first: list[tuple[_Node, int]] = [(root, 0)]
    for node, _ in parents_first:  # grows while it is walked
        parents_first.extend((child, node.stop) for child in node.children)
    frozen: dict[int, TreeNode] = {}
    for node, start in reversed(parents_first):
        children = [frozen.pop(id(child)) for child in node.children]
        children.sort(key=lambda child: -child.count)
        frozen[id(node)] = TreeNode(
            text=variants[node.member].piece(start, node.stop),
            start=start,
            stop=node.stop,
            count=node.count,
            variants=node.variants,
            children=tuple(children),
            ends=node.ends if children else 0,
        )
    return frozen[id(root)]
