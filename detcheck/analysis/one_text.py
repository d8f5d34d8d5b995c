"""Answers that a server gave to different prompts: it may not have answered what it was asked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detcheck.analysis.results import Analysis, Group

FEWEST_WORDS = 4
"""Shorter answers, such as `yes` or `B`, may well be right for several prompts."""
LONGEST_ERROR = 300
"""Characters of a longest error message; longer texts are answers about errors."""
ERROR = re.compile(
    r"overload|unavailable|try again|rate.?limit|too many requests|quota|at capacity|timed? ?out"
    r"|(?:internal|server|upstream|gateway) error|bad gateway|not loaded|out of memory",
    re.IGNORECASE,
)
"""Words of servers that do not answer. Alone they show nothing: a model may be asked about them."""


@dataclass(frozen=True, slots=True)
class SharedText:
    """One text that different prompts got."""

    text: str
    prompts: int
    decisive: bool
    """True if all of three or more prompts got it, or if it also reads like an error."""


def shared_texts(analysis: Analysis, groups: Sequence[Group]) -> Iterator[SharedText]:
    """The texts of at least `FEWEST_WORDS` words that a server gave to several prompts."""
    if analysis.run.traits.computes_here:
        return
    prompts_of: defaultdict[str, set[int]] = defaultdict(set)
    for group in groups:
        for counted in group.variants:
            prompts_of[counted.variant.text.strip()].add(group.prompt_index)
    asked = {group.prompt_index for group in groups}
    for text, prompts in prompts_of.items():
        if len(prompts) > 1 and len(text.split()) >= FEWEST_WORDS:
            everywhere = prompts == asked and len(asked) > 2
            yield SharedText(text, len(prompts), everywhere or reads_like_an_error(text))


def reads_like_an_error(text: str) -> bool:
    """True if a text is short and has words of servers that do not answer. It is a sign only."""
    return len(text) <= LONGEST_ERROR and ERROR.search(text) is not None
