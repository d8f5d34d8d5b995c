"""Whether different prompts still get different answers, once the checks are over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from detcheck.engines.openai.texts import own_words
from detcheck.evidence import EndpointCheck
from detcheck.text import count, quoted

DIFFERENT_PROMPTS = "different prompts"
"""Name of the check."""
EVERY_S = 30.0
"""Time after which the prompts are asked again at a batch size that they were asked at before."""
SHORTEST = 8
"""Characters of the beginning of a longer answer that are no chance."""


@dataclass(slots=True)
class LaterAnswers:
    """The answers of one endpoint to the prompts of the checks, before the experiment and since."""

    before: Mapping[str, str] = field(default_factory=dict)
    """By prompt, as `own_words` leaves them."""
    fewest: int = 2
    """So many different prompts with one answer are no chance."""
    answers: int = 0
    """Answers that came since."""
    at_s: Mapping[int, float] = field(default_factory=dict)
    """When the prompts were last asked, by batch size."""
    silent: bool = False
    """True if none of the last ones was answered: then they are asked at the end only."""
    shared: str = ""
    """An answer that different prompts got; empty if none did."""
    prompts: int = 0
    """How many of them got it; 1 if the experiment's own prompt got it too."""

    def due(self, together: int, now_s: float) -> bool:
        """True if the prompts are due after a trial of `together` requests."""
        if self.silent:
            return False
        return together not in self.at_s or now_s - max(self.at_s.values()) >= EVERY_S

    def judge(self, answers: Sequence[tuple[str, str]], own: Collection[str]) -> None:
        """Take (prompt, answer) pairs, and the answers that the trial before got.

        An answer that each of its prompts had before the experiment does not count, and prompts
        that had one answer then count as one: some models begin alike.
        """
        self.answers += len(answers)
        ours = {own_words(text) for text in own}
        prompts_of: dict[str, set[str]] = {}
        for prompt, text in answers:
            if words := own_words(text, prompt):
                prompts_of.setdefault(words, set()).add(prompt)
        for words, prompts in prompts_of.items():
            is_new = any(self.before.get(prompt) != words for prompt in prompts)
            told_apart = {self.before.get(prompt, prompt) for prompt in prompts}
            number = len(told_apart) + any(one == words or _begins(one, words) for one in ours)
            if is_new and number >= self.fewest:
                self.shared, self.prompts = words, number

    def joined(self, checks: Sequence[EndpointCheck]) -> list[EndpointCheck]:
        """The checks before the experiment, with the answers seen since.

        That different prompts got one answer is decisive.
        """
        if self.shared:
            sentence = (
                f"during the run {count(self.prompts, 'different prompt')} got one answer "
                f"({quoted(self.shared, 60)}): the server did not answer what it was asked"
            )
            others = [check for check in checks if check.name != DIFFERENT_PROMPTS]
            return [*others, EndpointCheck(DIFFERENT_PROMPTS, False, sentence, decisive=True)]
        return [self._confirmed(check) for check in checks]

    def _confirmed(self, check: EndpointCheck) -> EndpointCheck:
        if check.name != DIFFERENT_PROMPTS or not check.holds or not self.answers:
            return check
        return replace(check, sentence=f"{check.sentence}, and {self.answers} more during the run")


def _begins(whole: str, beginning: str) -> bool:
    return len(beginning) >= SHORTEST and whole.startswith(beginning)
