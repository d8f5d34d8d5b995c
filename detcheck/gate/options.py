"""The limits of a gate: the `[gate]` section of a settings file, or the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from detcheck.errors import UsageError
from detcheck.evidence import MIN_COMPARISONS
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK, KernelSettings
from detcheck.options import Option, check_types
from detcheck.text import count

if TYPE_CHECKING:
    from detcheck.experiment import Experiment
    from detcheck.rundir import Run

DEFAULT_MAX_DISTINCT = 1
BITS = "bits"
TOKENS = "tokens"
TEXT = "text"
ANSWER = "answer"
LEVELS = (BITS, TOKENS, TEXT, ANSWER)
"""What is held equal, the strictest first: log-probabilities, token ids, text, parsed answers."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


class GateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a gate; None if an option is not given.

    Raises UsageError, which names the option, if a value has a wrong type or makes no sense. Paths
    may be text.
    """

    level: Annotated[
        Literal["bits", "tokens", "text", "answer"] | None,
        Option(
            "What must be equal.",
            (),
            "|".join(LEVELS),
            default="answer with a parser, bits for kernels that claim invariance, else tokens",
        ),
    ] = None
    answer: Annotated[
        str | None,
        Option(
            "Parser of answers, which are then judged instead of tokens: number, letter, "
            "last-line, exact, regex:PATTERN or json:PATH.",
            (),
            "PARSER",
        ),
    ] = None
    max_distinct: Annotated[
        int | None,
        Option(
            "Most distinct answers of a prompt.",
            (),
            "N",
            default="1; no limit if a baseline or limits on answers are given alone",
        ),
    ] = None
    max_answer_flips: Annotated[
        int | None,
        Option(
            "Most prompts whose parsed answer may change with the load. Needs a parser.", (), "N"
        ),
    ] = None
    max_accuracy_spread: Annotated[
        float | None,
        Option(
            "Most points of 100 by which the load may move the score, best minus worst. Needs a "
            "parser, and right answers in the prompts file.",
            (),
            "POINTS",
        ),
    ] = None
    min_comparisons: Annotated[
        int,
        Option(
            "Fewest comparisons under a batch larger than one that a pass needs for each prompt; "
            f"at least {MIN_COMPARISONS}.",
            (),
            "N",
        ),
    ] = MIN_COMPARISONS
    baseline: Annotated[
        Path | None,
        Option(
            "Accepted answers (from `detcheck baseline update`), or an earlier run, that this run "
            "must give.",
            (),
            "FILE|RUN",
        ),
    ] = None
    control: Annotated[
        Path | None,
        Option("Another run whose stock kernels, or server, are the control.", (), "RUN"),
    ] = None
    require_control: Annotated[bool, Option("Without a control the verdict is inconclusive.")] = (
        False
    )
    require_whole_answer: Annotated[
        bool,
        Option(
            "If a server never showed some tokens, or counts none, the verdict is inconclusive."
        ),
    ] = False
    model: Annotated[str | None, Option("The model that the run must have asked.", (), "NAME")] = (
        None
    )
    max_age: Annotated[
        str | None, Option("Oldest run to judge, such as 2h or 7d.", (), "DURATION")
    ] = None
    kernels: Annotated[
        str | tuple[str, ...] | None,
        Option(
            "Kernels settings to judge, comma-separated.",
            ("-k",),
            "LIST",
            default="batch-invariant if the run has it, else the only ones it has",
        ),
    ] = None

    def __post_init__(self) -> None:
        for name in ("baseline", "control"):
            if isinstance(getattr(self, name), str):
                msgspec.structs.force_setattr(self, name, Path(getattr(self, name)))
        self._check_level()
        check_types(self)
        if self.answer is not None:
            from detcheck.parsers import answer_parser

            answer_parser(self.answer)
        self._check_numbers()
        if self.model is not None and not self.model.strip():
            raise UsageError(
                "`model` is empty: name the model that must have been asked, or leave it out. A "
                "shell variable may be unset."
            )
        if self.max_age is not None:
            parse_duration(self.max_age)
        self._settle_kernels()

    def _check_level(self) -> None:
        if self.level is not None and self.level not in LEVELS:
            raise UsageError(f"Unknown level {self.level!r}: choose one of {', '.join(LEVELS)}.")
        if self.level not in (None, ANSWER) and self.answer is not None:
            raise UsageError(f"`answer` is for the level answer, not {self.level}.")

    def _check_numbers(self) -> None:
        if self.max_distinct is not None and self.max_distinct < 1:
            raise UsageError(f"`max_distinct` must be at least 1, not {self.max_distinct}.")
        if self.max_answer_flips is not None and self.max_answer_flips < 0:
            raise UsageError(f"`max_answer_flips` must be at least 0, not {self.max_answer_flips}.")
        if self.max_accuracy_spread is not None and not 0 <= self.max_accuracy_spread < 100:
            raise UsageError(
                f"`max_accuracy_spread` must be at least 0 and less than 100 points, which no "
                f"score can exceed, not {self.max_accuracy_spread:g}."
            )
        if self.min_comparisons < MIN_COMPARISONS:
            raise UsageError(
                f"`min_comparisons` must be at least {MIN_COMPARISONS}, not "
                f"{self.min_comparisons}: fewer show too little."
            )

    def _settle_kernels(self) -> None:
        if self.kernels is None:
            return
        names = [self.kernels] if isinstance(self.kernels, str) else self.kernels
        kernels = split_kernels(",".join(names))
        if not kernels:
            raise UsageError("`kernels` names none: give one, such as batch-invariant.")
        for name in kernels:
            KernelSettings.parse(name)
        msgspec.structs.force_setattr(self, "kernels", kernels)

    @property
    def limit(self) -> int | None:
        """Most distinct answers a prompt may have; None if other limits alone decide."""
        others = self.baseline is not None or self.limits_answers
        if self.max_distinct is None and not others:
            return DEFAULT_MAX_DISTINCT
        return self.max_distinct

    @property
    def limits_answers(self) -> bool:
        """True if there is a limit on the parsed answers of the whole set."""
        return self.max_answer_flips is not None or self.max_accuracy_spread is not None

    def level_of(self, kernels: str) -> str:
        """The level that a kernels setting is judged by."""
        level: str | None = ANSWER if self.answer is not None else self.level
        if level is not None:
            return level
        return BITS if KernelSettings.parse(kernels).claims_invariance else TOKENS

    def with_parser_of(self, run: Run) -> GateOptions:
        """These options with the parser that the run's experiment names, if they judge answers.

        Raises UsageError if answers are to be judged and nobody names a parser.
        """
        if self.answer is not None or not (self.level == ANSWER or self.limits_answers):
            return self
        parser = run.setting("answer")
        if parser is None:
            raise UsageError("To judge answers, give a parser by `answer`, such as number.")
        return msgspec.structs.replace(self, answer=parser)

    def check_answers(self, experiment: Experiment) -> None:
        """Raise UsageError if a run of `experiment` could not be held to the limits on answers."""
        if not self.limits_answers:
            return
        self.check_flips(len(experiment.prompts))
        if self.answer is None and experiment.answer is None:
            raise UsageError("To judge answers, give a parser by `answer`, such as number.")
        known = bool(experiment.items) and experiment.items[0].answer is not None
        if self.max_accuracy_spread is not None and not known:
            raise UsageError(
                "`max_accuracy_spread` needs right answers: give every prompt an answer in the "
                "prompts file."
            )

    def check_flips(self, prompts: int) -> None:
        """Raise UsageError if so few prompts cannot exceed the limit on answers that change."""
        limit = self.max_answer_flips
        if limit is not None and limit >= prompts:
            raise UsageError(
                f"`max_answer_flips` is {limit}, which {count(prompts, 'prompt')} cannot exceed: "
                "lower it, or ask more prompts."
            )

    def kernels_of(self, available: Sequence[str]) -> tuple[str, ...]:
        """The kernels settings to judge, among those that a run has.

        Unless they are named: batch-invariant if the run has it, else the only setting of the run.
        Raises UsageError if the run lacks one, or if the choice would be a guess.
        """
        if self.kernels is None:
            return (_default_kernels(available),)
        for name in self.kernels:
            if name not in available:
                raise UsageError(
                    f"The run has no {name} kernels, only {', '.join(available)}: run it with "
                    "them, or choose others by `kernels`."
                )
        return tuple(self.kernels)


def split_kernels(text: str) -> tuple[str, ...]:
    """Kernels settings from a comma-separated list, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def parse_duration(text: str, name: str = "max_age") -> timedelta:
    """A duration such as `90s`, `30m`, `2h`, `7d`, `1w` or `1d12h`.

    Raises UsageError, which names the argument `name`, if `text` is none, or is zero.
    """
    parts = DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text or not parts:
        raise UsageError(f"`{name}` must be a duration such as 30m, 2h or 7d, not {text!r}.")
    try:
        duration = sum((timedelta(**{UNITS[u]: float(n)}) for n, u in parts), timedelta())
    except OverflowError as error:
        raise UsageError(f"`{name}` is too long: {text!r}.") from error
    if not duration:
        raise UsageError(f"`{name}` must be longer than zero, not {text!r}.")
    return duration


def _default_kernels(available: Sequence[str]) -> str:
    preferred: str = BATCH_INVARIANT
    if preferred in available:
        return preferred
    if len(available) == 1:
        return available[0]
    # To judge stock because the rest is a subset would be a guess, and a gate must not guess.
    example = next((name for name in available if name != STOCK), STOCK)
    raise UsageError(
        f"The run has {', '.join(available)}: choose by `kernels` which to judge, such as "
        f"{example}."
    )
