"""The prefix tree as a report shows it: frozen branches, cut down to what fits.

`branches` turns the tree of an analysis into branches; `prune` keeps the most common of them and
counts everything that it leaves out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from detcheck.analysis.results import Group, TreeNode
from detcheck.report.text import same_start
from detcheck.text import count

BRANCH = "branch"
END = "end"
REST = "rest"


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch of the tree: a stretch of text, and the completions that pass through it."""

    kind: str
    """`branch`, `end` (completions that stop here while others go on), or `rest` (collapsed)."""
    text: str
    start: int
    """Position of its first token (character without token ids)."""
    count: int
    """Completions that pass through."""
    variants: int
    """Distinct completions that pass through."""
    on_reference: bool
    """True if the reference passes through."""
    depth: int
    """0 for the root."""
    children: tuple[Branch, ...] = ()
    """Most common first."""
    collapsed: bool = False
    """If true, it has children that are not shown."""

    @property
    def label(self) -> str:
        """Its text, or a phrase in parentheses if it has none."""
        if self.kind == REST:
            return f"… {count(self.variants, 'more answer')}"
        if self.kind == END:
            return "(ends here)"
        return self.text

    def leaves(self) -> Iterator[Branch]:
        """Branches without children, top to bottom."""
        return (branch for branch in self.walk() if not branch.children)

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, parents before children, top to bottom."""
        waiting = [self]
        while waiting:
            branch = waiting.pop()
            yield branch
            waiting.extend(reversed(branch.children))


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """How much of a tree is shown."""

    leaves: int
    depth: int
    children: int
    """Most children of one branch."""


def branches(group: Group) -> Branch | None:
    """The whole prefix tree of `group`; None if no completion came back."""
    if group.tree is None:
        return None
    # Without recursion: a tree can be as deep as there are variants.
    parents_first = [(group.tree, 0, _on_reference(group, group.tree))]
    for node, depth, on_reference in parents_first:  # grows while it is walked
        parents_first += [
            (child, depth + 1, on_reference and _on_reference(group, child))
            for child in node.children
        ]
    done: dict[int, Branch] = {}
    for node, depth, on_reference in reversed(parents_first):
        children = [done.pop(id(child)) for child in node.children]
        if node.ends and children:
            children.append(_end(node, depth + 1, on_reference and not _any_reference(children)))
        done[id(node)] = Branch(
            kind=BRANCH,
            text=node.text,
            start=node.start,
            count=node.count,
            variants=node.variants,
            on_reference=on_reference,
            depth=depth,
            children=tuple(sorted(children, key=lambda child: -child.count)),
        )
    return done[id(group.tree)]


def prune(root: Branch, limits: TreeLimits) -> Branch:
    """`root` with at most `limits.leaves` leaves: the most common are kept, the rest counted.

    Branches open from the most common down until there is no room.
    """
    shown: dict[int, tuple[Branch, ...]] = {}
    leaves, order = 1, 0
    heap = [(-root.count, order, root)]
    while heap:
        _, _, branch = heapq.heappop(heap)
        room = min(limits.children, limits.leaves - leaves + 1)
        if not branch.children or branch.depth >= limits.depth or room < 2:
            continue
        shown[id(branch)] = opened = _fit(branch.children, room)
        leaves += len(opened) - 1
        for child in opened:
            order += 1
            heapq.heappush(heap, (-child.count, order, child))
    return _rebuilt(root, root.text, shown)


def _fit(children: Sequence[Branch], room: int) -> tuple[Branch, ...]:
    """At most `room` children, the least common ones gathered into one of kind `rest`."""
    if len(children) <= room:
        return tuple(children)
    return (*children[: room - 1], _rest(children[room - 1 :]))


def _rebuilt(branch: Branch, text: str, shown: dict[int, tuple[Branch, ...]]) -> Branch:
    """`branch` with the children that are shown, their texts told apart from each other."""
    children = shown.get(id(branch), ())
    texts = same_start([child.text for child in children])
    return replace(
        branch,
        text=text,
        children=tuple(
            _rebuilt(child, words, shown) for child, words in zip(children, texts, strict=True)
        ),
        collapsed=bool(branch.children) and not children,
    )


def _on_reference(group: Group, node: TreeNode) -> bool:
    reference = group.reference
    if reference is None:
        return False
    return reference.variant.piece(node.start, node.stop) == node.text


def _any_reference(branches: Sequence[Branch]) -> bool:
    return any(branch.on_reference for branch in branches)


def _end(node: TreeNode, depth: int, on_reference: bool) -> Branch:
    return Branch(END, "", node.stop, node.ends, 1, on_reference, depth)


def _rest(hidden: Sequence[Branch]) -> Branch:
    return Branch(
        kind=REST,
        text="",
        start=hidden[0].start,
        count=sum(branch.count for branch in hidden),
        variants=sum(branch.variants for branch in hidden),
        on_reference=False,
        depth=hidden[0].depth,
    )
