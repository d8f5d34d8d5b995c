"""A reply with several choices: `n` completions of one request, told apart by their index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detcheck.completion import Completion
from detcheck.engines.openai.endings import REASON_FIELDS, reason_of
from detcheck.engines.openai.failures import MALFORMED, TRUNCATED, Failure
from detcheck.engines.openai.reply import Reply


def new_reply(max_new_tokens: int, choices: int, secrets: Sequence[str] = ()) -> Reply:
    """An empty reply to a request for so many choices of at most `max_new_tokens` each."""
    if choices == 1:
        return Reply(max_new_tokens, secrets)
    return ChoicesReply(max_new_tokens, choices, secrets)


class ChoicesReply(Reply):
    """One reply with several choices while it comes in; each is folded as a reply of its own.

    A choice is known by its `index` alone, since servers send them as they are generated. `usage`
    counts the tokens of all of them.
    """

    def __init__(self, max_new_tokens: int, choices: int, secrets: Sequence[str] = ()):
        super().__init__(max_new_tokens * choices, secrets)
        self.choices = tuple(Reply(max_new_tokens, secrets) for _ in range(choices))

    def add(self, chunk: dict[str, Any]) -> bool:
        """See `Reply.add`; raises Failure also if a choice has no index of its own."""
        by_index: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for choice in self._read_beside(chunk):
            by_index[self._index_of(choice)].append(choice)
        has_tokens = False
        reasons = {name: chunk[name] for name in REASON_FIELDS & chunk.keys()}
        for index, pieces in by_index.items():
            if sum(map(_is_whole, pieces)) > 1:
                raise Failure(MALFORMED, f"two choices have the index {index}")
            has_tokens |= self.choices[index].add({"choices": pieces, **reasons})
        return has_tokens

    def completions(self) -> tuple[Completion, ...]:
        """The answer of every choice, by index; raises Failure if one did not end or is missing."""
        if not any(one.num_tokens or one.finish_reason for one in self.choices):
            return (self.completion(),)  # which says why there is none
        found = []
        for index, one in enumerate(self.choices):
            if one.finish_reason is None and not one.num_tokens:
                raise self._missing(index)
            one.done = self.done
            found.append(one.completion())
        return self._with_unseen(found)

    def _with_unseen(self, completions: Sequence[Completion]) -> tuple[Completion, ...]:
        """The completions, with the unseen tokens shared out: which choice has them is not told."""
        each, left = divmod(self.unseen_tokens, len(completions))
        return tuple(
            replace(completion, unseen_tokens=each + (index < left))
            for index, completion in enumerate(completions)
        )

    def _missing(self, index: int) -> Failure:
        here = sum(bool(one.finish_reason or one.num_tokens) for one in self.choices)
        return Failure(
            MALFORMED if self.done else TRUNCATED,
            f"the reply holds {here} of the {len(self.choices)} choices that were asked for (n), "
            f"and none of index {index}",
        )

    @property
    def num_tokens(self) -> int:
        """Tokens so far, of all choices."""
        return max(sum(one.num_tokens for one in self.choices), self.usage.completion_tokens or 0)

    @property
    def text(self) -> str:
        """The texts of all choices, one after the other."""
        return "\n".join(one.text for one in self.choices)

    @property
    def hidden(self) -> bool:
        """True if tokens of some choice were generated and none of it shown."""
        if any(one.hidden for one in self.choices):
            return True
        return self.unseen_tokens > 0 and not all(one.num_tokens for one in self.choices)

    @property
    def has_token_ids(self) -> bool:
        """True if the server gave the id of every token of every choice."""
        return all(one.has_token_ids for one in self.choices)

    @property
    def misses_token_ids(self) -> bool:
        """True if the server gave some token ids of a choice, but not all."""
        return any(one.misses_token_ids for one in self.choices)

    @property
    def has_candidates(self) -> bool:
        """True if the server named a runner-up for every token of every choice."""
        return all(one.has_candidates for one in self.choices)

    @property
    def unseen_tokens(self) -> int:
        """Tokens that the server counted and did not show, of all choices, at the least."""
        shown = sum(one.shown_tokens for one in self.choices)
        shown += len(self.choices) - 1  # each choice may end with a token that has no text
        counted = self.usage.completion_tokens
        if self.has_token_ids and counted is not None and counted <= shown + 1:
            return 0  # reasoning is among the ids
        shows_reasoning = any(one.shows_reasoning for one in self.choices)
        return self.usage.unseen(shown, has_reasoning=shows_reasoning)

    def _index_of(self, choice: dict[str, Any]) -> int:
        index = choice.get("index")
        if type(index) is not int or not 0 <= index < len(self.choices):
            raise Failure(
                MALFORMED,
                f"a choice has the index {index!r}, and {len(self.choices)} were asked for (n)",
            )
        return index


def _is_whole(piece: Mapping[str, Any]) -> bool:
    """True if nothing of this choice follows: it is a whole message, or its last piece."""
    return bool(piece.get("message")) or reason_of(piece) is not None
