"""The prefix tree of one prompt's variants: shared beginnings, branches, completions in each.

Compressed (a node is a stretch without a branch) and built without recursion: variants sorted by
their units stand next to those they share most with, and one pass with a stack over the lengths
of these shared prefixes gives the nodes. Linear in the number of units, after the sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from detcheck.analysis.divergence import (
    Units,
    comparable,
    first_difference,
    next_words,
    units,
    words_before,
)
from detcheck.analysis.flips import FlipJudge
from detcheck.analysis.results import Branching, TreeNode
from detcheck.rundir import StoredVariant


@dataclass(slots=True)
class _Node:
    """A node while it is built. The variants that pass through are a range of the sorted rows."""

    stop: int
    """Unit at which its children diverge, or its variants end."""
    first: int
    """First sorted row that passes through; rows that end here come before those that go on."""
    last: int
    """One past the last sorted row that passes through."""
    count: int = 0
    """Completions that pass through."""
    ends: int = 0
    """Completions that end here."""
    num_ends: int = 0
    """Sorted rows that end here."""
    children: list[_Node] = field(default_factory=list)

    def add_end(self, count: int) -> None:
        """One more row ends here, with `count` completions."""
        self.ends += count
        self.count += count
        self.num_ends += 1
        self.last = self.first + self.num_ends

    def adopt(self, child: _Node) -> None:
        """Take a finished node as the next child."""
        self.children.append(child)
        self.count += child.count
        self.last = child.last


class PrefixTree:
    """The tree over distinct variants of one prompt, `counts[i]` completions of `variants[i]` each.

    `variants` are ordered by count, most common first; there is at least one.
    """

    def __init__(self, variants: Sequence[StoredVariant], counts: Sequence[int]):
        self._variants = comparable(variants)
        rows = [units(variant) for variant in self._variants]
        self._order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i4").tobytes())
        self._root = _nodes([rows[i] for i in self._order], [counts[i] for i in self._order])

    def root(self) -> TreeNode:
        """The tree as records; the root is the text that all share, possibly none."""
        frozen: dict[int, TreeNode] = {}
        for node, start in reversed(self._parents_first()):
            children = [frozen.pop(id(child)) for child in node.children]
            children.sort(key=lambda child: -child.count)
            frozen[id(node)] = TreeNode(
                text=self._variants[self._order[node.first]].piece(start, node.stop),
                start=start,
                stop=node.stop,
                count=node.count,
                variants=node.last - node.first,
                children=tuple(children),
                ends=node.ends if children else 0,
            )
        return frozen[id(self._root)]

    def branchings(self, noise: float | None, seed: int = 0) -> tuple[Branching, ...]:
        """Every branching, by position, then most completions first.

        `noise` is in nats, None if it was not measured; `seed` is that of the answers.
        """
        judge = FlipJudge(self._variants, noise)
        found = [
            branching
            for node, _ in self._parents_first()
            for branching in self._branchings_of(node, judge, seed)
        ]
        found.sort(key=lambda branching: (branching.position, -branching.completions))
        return tuple(found)

    def _parents_first(self) -> list[tuple[_Node, int]]:
        """Every node with the unit it starts at, parents before their children."""
        listed = [(self._root, 0)]
        for node, _ in listed:  # grows while it is walked
            listed.extend((child, node.stop) for child in node.children)
        return listed

    def _branchings_of(self, node: _Node, judge: FlipJudge, seed: int) -> Iterator[Branching]:
        """Each branch below `node` against the most common of them."""
        branches = [_Branch(child.count, self._members(child)) for child in node.children]
        if branches and node.ends:
            ends = sorted(self._order[node.first : node.first + node.num_ends])
            branches.append(_Branch(node.ends, ends))
        branches.sort(key=lambda branch: (-branch.count, branch.members[0]))
        for branch in branches[1:]:
            yield self._branching(node.stop, branches[0], branch, judge, seed)

    def _members(self, node: _Node) -> list[int]:
        """The variants that pass through `node`, most common first."""
        return sorted(self._order[node.first : node.last])

    def _branching(
        self, position: int, common: _Branch, branch: _Branch, judge: FlipJudge, seed: int
    ) -> Branching:
        most_common, other = (self._variants[one.members[0]] for one in (common, branch))
        return Branching(
            position=position,
            context=words_before(most_common, position),
            common_piece=next_words(most_common, position),
            piece=next_words(other, position),
            common_completions=common.count,
            completions=branch.count,
            variants=len(branch.members),
            common_rank=common.members[0] + 1,
            rank=branch.members[0] + 1,
            flip=judge.flip(common.members, branch.members, position),
            seed=seed,
        )


def prefix_tree(variants: Sequence[StoredVariant], counts: Sequence[int]) -> TreeNode | None:
    """Tree over distinct variants, `counts[i]` completions of `variants[i]` each.

    `variants` are ordered by count, most common first. None if there are none.
    """
    return PrefixTree(variants, counts).root() if variants else None


@dataclass(frozen=True, slots=True)
class _Branch:
    """One way on from a node."""

    count: int
    """Completions that take it."""
    members: list[int]
    """Indices of the variants that take it, most common first."""


def _nodes(rows: Sequence[Units], counts: Sequence[int]) -> _Node:
    """Root of the tree over sorted `rows`, with `counts[i]` completions of row i.

    The stack holds the path to the latest row; each node's `stop` is larger than the one before.
    """
    path: list[_Node] = []
    for index, row in enumerate(rows):
        if path:
            shared = first_difference(rows[index - 1], row)
            # Equal rows (texts that differed only in their tokens) are one node.
            _branch(path, len(row) if shared is None else shared)
        if not path or path[-1].stop != len(row):
            path.append(_Node(stop=len(row), first=index, last=index + 1))
        path[-1].add_end(counts[index])
    _branch(path, path[0].stop)
    return path[0]


def _branch(path: list[_Node], stop: int) -> None:
    """Close the nodes past `stop`, so that the path ends with a node that stops there."""
    while path[-1].stop > stop:
        closed = path.pop()
        if not path or path[-1].stop < stop:
            path.append(_Node(stop=stop, first=closed.first, last=closed.last))
        path[-1].adopt(closed)
