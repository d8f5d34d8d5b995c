"""Two answers side by side, with the words that only one of them has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

MAX_WORDS = 400
"""Words of each answer that are compared after the start that they share."""
_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class DiffPart:
    """A stretch of one answer."""

    text: str
    shared: bool
    """True if the other answer has it too, at this place."""


@dataclass(frozen=True, slots=True)
class WordDiff:
    """Both answers in stretches; the stretches of each add up to the whole answer."""

    left: tuple[DiffPart, ...]
    right: tuple[DiffPart, ...]

    @property
    def equal(self) -> bool:
        """True if both answers have the same text."""
        return all(part.shared for part in (*self.left, *self.right))


def word_diff(left: str, right: str) -> WordDiff:
    """Compare two answers word by word; a word includes the white space before it.

    After the start that both share, `MAX_WORDS` words of each are compared. What follows these
    counts as different, unless both end alike.
    """
    ours, theirs = words_of(left), words_of(right)
    start = _num_equal(ours, theirs)
    end = _num_equal(ours[start:][::-1], theirs[start:][::-1])
    middle_ours = ours[start : len(ours) - end]
    middle_theirs = theirs[start : len(theirs) - end]
    matcher = SequenceMatcher(
        None, middle_ours[:MAX_WORDS], middle_theirs[:MAX_WORDS], autojunk=False
    )
    blocks = matcher.get_matching_blocks()
    return WordDiff(
        tuple(_parts(ours, start, end, [(block.a, block.size) for block in blocks])),
        tuple(_parts(theirs, start, end, [(block.b, block.size) for block in blocks])),
    )


def words_of(text: str) -> list[str]:
    """The words of a text, each with the white space before it; joined, they are the text."""
    return _WORD.findall(text)


def _num_equal(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many words both begin with."""
    pairs = zip(ours, theirs, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parts(
    words: Sequence[str], start: int, end: int, blocks: Sequence[tuple[int, int]]
) -> Iterator[DiffPart]:
    """The stretches of one answer; `blocks` are (first, size) of what both have in the middle."""
    stop = len(words) - end
    shared = [(0, start), *((start + first, size) for first, size in blocks if size), (stop, end)]
    done = 0
    for first, size in shared:
        if first > done:
            yield DiffPart("".join(words[done:first]), shared=False)
        if size:
            yield DiffPart("".join(words[first : first + size]), shared=True)
        done = first + size
