"""The experiment: the question, and the grid of conditions to ask it under.

The target, which answers, is a value beside it.

Every combination of prompt, kernels setting, batch size, seed and placement is one condition; see
`detcheck.grid`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from detcheck.errors import UsageError
from detcheck.kernels.settings import KernelSettings
from detcheck.options import Option, check_types
from detcheck.parsers import answer_parser
from detcheck.prompts import ChatMessage, PromptItem
from detcheck.text import count

DEFAULT_PROMPT = "Tell me about Richard Feynman"
AUTO = "auto"
NO_FILTERS: Mapping[str, float] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Values at which the options that shape sampling change nothing."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The question and the grid.

    Raises UsageError, in one sentence that names the field, if a value has a wrong type or makes
    no sense. Lists are taken and kept as tuples.
    """

    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)
    """The questions. On the command line: `--prompt` and `--prompts FILE`."""
    items: tuple[PromptItem, ...] = ()
    """What is known of each prompt beside its text; empty, or one for each. From a prompts file."""
    answer: Annotated[
        str | None,
        Option(
            "Parser of answers: number, letter, last-line, exact, regex:PATTERN or json:PATH. The "
            "analysis then tells whether the load changes the answers, and the score if a prompts "
            "file has the right ones.",
            (),
            "PARSER",
        ),
    ] = None
    completions: Annotated[
        int,
        Option(
            "Completions of each prompt under each kernels setting, seed and placement. They are "
            "shared out over the batch sizes.",
            ("-n",),
            "N",
        ),
    ] = 48
    batch_sizes: Annotated[
        tuple[int, ...], Option("Requests in flight together, comma-separated.", ("-b",), "LIST")
    ] = (1, 4, 8, 16)
    kernels: Annotated[
        tuple[str, ...],
        Option(
            "Kernels settings, comma-separated: stock, batch-invariant, a subset such as "
            "batch-invariant:attention, or fully-invariant (chunking, prefill-decode and "
            "prefix-cache as well). A server's kernels cannot be chosen.",
            ("-k",),
            "LIST",
            default="stock,batch-invariant; as-served for a server",
        ),
    ] = (AUTO,)
    traffic: Annotated[
        Literal["alone", "mixed"],
        Option(
            "alone: a batch holds copies of the prompt. mixed: half of it is other requests of "
            "other lengths."
        ),
    ] = "alone"
    max_new_tokens: Annotated[int, Option("Most tokens of a completion.", (), "N")] = 100
    temperature: Annotated[
        float,
        Option("0 always takes the best token. Above 0, tokens are sampled by seed.", (), "T"),
    ] = 0.0
    top_k: Annotated[int, Option("Sample among the K best tokens only; 0: among all.", (), "K")] = 0
    top_p: Annotated[
        float,
        Option(
            "Sample among the fewest tokens whose probabilities sum to P, best first; 1: among "
            "all.",
            (),
            "P",
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        Option(
            "Sample among tokens at least P times as probable as the best; 0: among all.",
            (),
            "P",
        ),
    ] = 0.0
    seeds: Annotated[
        tuple[int, ...],
        Option(
            "Seeds of wanted samples, comma-separated; one number N means the N seeds 0 to N-1. "
            "Several need a temperature above 0.",
            (),
            "LIST",
            default="the one seed 0",
        ),
    ] = (0,)
    load_seed: Annotated[
        int, Option("Seed of the load: positions, neighbours and arrivals.", (), "S")
    ] = 0

    repeat_trial: Annotated[
        int,
        Option(
            "How often each condition's first trial is sent, byte for byte the same, before the "
            "load varies; at least 1.",
            (),
            "K",
        ),
    ] = 2

    def __post_init__(self) -> None:
        check_types(self)
        self._check_numbers()
        self._check_prompts()
        self._check_items()
        if self.answer is not None:
            answer_parser(self.answer)
        self._check_kernels()
        self._check_seeds()
        self._check_filters()

    def _check_numbers(self) -> None:
        for name in ("completions", "max_new_tokens", "repeat_trial"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"`temperature` must be 0 or more, not {self.temperature}.")
        if not self.batch_sizes:
            raise UsageError("`batch_sizes` is empty: give at least one, such as 1,4,8.")
        for batch_size in self.batch_sizes:
            if batch_size < 1:
                raise UsageError(f"Batch sizes must be at least 1, not {batch_size}.")
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise UsageError("A batch size is given twice: list each once.")
        largest = max(self.batch_sizes)
        if largest > self.completions:
            raise UsageError(
                f"Batch size {largest} is larger than the "
                f"{count(self.completions, 'completion')} asked for: raise `completions` to at "
                f"least {largest} or leave that batch size out."
            )
        if len(self.batch_sizes) > self.completions:
            raise UsageError(
                f"{len(self.batch_sizes)} batch sizes cannot share "
                f"{count(self.completions, 'completion')}: raise `completions` or give "
                "fewer batch sizes."
            )

    def _check_prompts(self) -> None:
        if not self.prompts:
            raise UsageError("Give at least one prompt.")
        for index, prompt in enumerate(self.prompts):
            if not prompt.strip():
                raise UsageError(f"Prompt {index + 1} is empty: say what to ask.")
            first = self.prompts.index(prompt)
            if first != index:
                raise UsageError(f"Prompts {first + 1} and {index + 1} are the same: drop one.")

    def _check_items(self) -> None:
        if not self.items:
            return
        if len(self.items) != len(self.prompts):
            raise UsageError(
                f"`items` has {count(len(self.items), 'entry')} for "
                f"{count(len(self.prompts), 'prompt')}: give one for each, or none."
            )
        without = [item.answer is None for item in self.items]
        if any(without) and not all(without):
            raise UsageError(
                f"Prompt {without.index(True) + 1} has no answer, and others have one: give every "
                "prompt an answer, or none."
            )
        ids = Counter(item.id for item in self.items if item.id is not None)
        for name, number in ids.items():
            if number > 1:
                raise UsageError(f"{number} prompts have the id {name!r}: give each its own.")

    def _check_kernels(self) -> None:
        if len(set(self.kernels)) != len(self.kernels) or not self.kernels:
            raise UsageError("Give each kernels setting once, such as stock,batch-invariant.")
        if self.kernels != (AUTO,):
            for kernels in self.kernels:
                KernelSettings.parse(kernels)

    def _check_seeds(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError("A seed is given twice or none is given: list each once.")
        if len(self.seeds) > 1 and self.temperature == 0:
            raise UsageError(
                "At temperature 0 a seed changes nothing: raise `temperature`, or give one seed."
            )

    def _check_filters(self) -> None:
        """Check the options that shape sampling."""
        if self.top_k < 0:
            raise UsageError(f"`top_k` must be 0 or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` must be above 0 and at most 1, not {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"`min_p` must be from 0 to 1, not {self.min_p}.")
        if self.temperature == 0 and self.filters:
            name = next(iter(self.filters))
            raise UsageError(
                f"At temperature 0 `{name}` changes nothing: raise `temperature`, or leave "
                f"`{name}` out."
            )

    @property
    def filters(self) -> dict[str, float]:
        """The options that shape sampling and are in use, by name."""
        given = {name: getattr(self, name) for name in NO_FILTERS}
        return {name: value for name, value in given.items() if value != NO_FILTERS[name]}

    def item_of(self, prompt: str) -> PromptItem:
        """What is known of one of the prompts; raises ValueError if it is none of them."""
        index = self.prompts.index(prompt)
        return self.items[index] if self.items else PromptItem()

    def chat_of(self, prompt: str) -> tuple[ChatMessage, ...]:
        """The messages that ask `prompt`: its own chat, else one message of the user."""
        own = self.item_of(prompt).messages if prompt in self.prompts else ()
        return own or (ChatMessage("user", prompt),)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `run.json`; `from_dict` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Experiment:
        """Inverse of `to_dict`. Raises UsageError if a field is unknown or has a wrong type."""
        unknown = set(data) - set(cls.__struct_fields__)
        if unknown:
            raise UsageError(f"Unknown experiment field {min(unknown)!r}.")
        return cls(**data)
