"""A prefix tree cut down to what fits: the biggest branches, and a count of what was left out."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from detcheck.analysis.results import Group, TreeNode
from detcheck.report.text import same_start
from detcheck.text import count

BRANCH = "branch"
END = "end"
REST = "rest"


@dataclass(slots=True)
class Branch:
    """One branch as it is shown."""

    kind: str
    """`branch`, `end` (completions that stop here while others go on), or `rest` (collapsed)."""
    text: str
    start: int
    count: int
    variants: int
    on_reference: bool
    depth: int
    children: list[Branch] = field(default_factory=list)
    collapsed: bool = False
    """Whether it parts further on, which is not shown."""

    @property
    def label(self) -> str:
        """What stands for the words where there are none."""
        if self.kind == REST:
            return f"… {count(self.variants, 'more answer')}"
        if self.kind == END:
            return "(ends here)"
        return self.text

    def leaves(self) -> Iterator[Branch]:
        """Branches without children, top to bottom."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, top to bottom."""
        yield self
        for child in self.children:
            yield from child.walk()


def prune(group: Group, *, max_leaves: int, max_depth: int, max_children: int) -> Branch | None:
    """The prefix tree of `group` with at most `max_leaves` leaves, the most common kept.

    Branches open from the most common down, until there is no room. Returns None where there is
    no tree.
    """
    if group.tree is None:
        return None
    root = _branch(group, group.tree, parent=None)
    leaves = 1
    order = 0
    heap = [(-root.count, order, root, group.tree)] if group.tree.children else []
    while heap:
        _, _, branch, node = heapq.heappop(heap)
        room = min(max_children, max_leaves - leaves + 1)
        if branch.depth >= max_depth or room < 2:
            branch.collapsed = True
            continue
        opened = _open(group, branch, node, room)
        leaves += len(branch.children) - 1
        for child, child_node in opened:
            order += 1
            heapq.heappush(heap, (-child.count, order, child, child_node))
    return root


def _open(group: Group, branch: Branch, node: TreeNode, room: int) -> list[tuple[Branch, TreeNode]]:
    """Give `branch` its children, the tail collapsed into one; returns those that part again."""
    pairs: list[tuple[Branch, TreeNode | None]] = [
        (_branch(group, child, branch), child) for child in node.children
    ]
    if node.ends and node.children:
        taken = any(child.on_reference for child, _ in pairs)
        pairs.append((_end(branch, node, branch.on_reference and not taken), None))
    pairs.sort(key=lambda pair: -pair[0].count)
    if len(pairs) > room:
        hidden = [child for child, _ in pairs[room - 1 :]]
        pairs = [*pairs[: room - 1], (_rest(branch, hidden), None)]
    branch.children = [child for child, _ in pairs]
    for child, text in zip(
        branch.children, same_start([c.text for c in branch.children]), strict=True
    ):
        child.text = text
    return [(child, below) for child, below in pairs if below is not None and below.children]


def _branch(group: Group, node: TreeNode, parent: Branch | None) -> Branch:
    return Branch(
        kind=BRANCH,
        text=node.text,
        start=node.start,
        count=node.count,
        variants=node.variants,
        on_reference=(parent is None or parent.on_reference) and _on_reference(group, node),
        depth=0 if parent is None else parent.depth + 1,
    )


def _on_reference(group: Group, node: TreeNode) -> bool:
    reference = group.reference
    if reference is None:
        return False
    return reference.variant.piece(node.start, node.stop) == node.text


def _end(parent: Branch, node: TreeNode, on_reference: bool) -> Branch:
    return Branch(END, "", node.stop, node.ends, 1, on_reference, parent.depth + 1)


def _rest(parent: Branch, hidden: list[Branch]) -> Branch:
    return Branch(
        kind=REST,
        text="",
        start=hidden[0].start,
        count=sum(branch.count for branch in hidden),
        variants=sum(branch.variants for branch in hidden),
        on_reference=False,
        depth=parent.depth + 1,
    )
