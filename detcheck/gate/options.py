"""What a gate is asked to hold: the `[gate]` section of a settings file, or the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import msgspec

from detcheck.analysis.evidence import MIN_COMPARISONS
from detcheck.errors import UsageError
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK, KernelSettings

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

    Raises UsageError, which names the option, if a value makes no sense.
    """

    level: Literal["bits", "tokens", "text", "answer"] | None = None
    """What must be equal. None: bits for kernels that claim invariance, tokens for others."""
    max_distinct: int | None = None
    """Most distinct answers that a prompt may have."""
    min_comparisons: int = MIN_COMPARISONS
    """Fewest comparisons of each prompt that a pass needs."""
    kernels: str | tuple[str, ...] | None = None
    """Kernels settings to judge; a text is split at its commas."""
    model: str | None = None
    """The model that the run must have asked, as it was named to it."""
    max_age: str | None = None
    """How old the run may be, such as `2h`."""
    baseline: Path | None = None
    """A baseline file or a run, whose answers must come back."""
    control: Path | None = None
    """Another run whose stock kernels or server are the control."""
    require_control: bool = False
    """If true, a run without a control is inconclusive."""
    require_whole_answer: bool = False
    """If true, answers with tokens that the server never showed are inconclusive."""

    def __post_init__(self) -> None:
        if self.max_distinct is not None and self.max_distinct < 1:
            raise UsageError(f"`max_distinct` must be at least 1, not {self.max_distinct}.")
        if self.min_comparisons < MIN_COMPARISONS:
            raise UsageError(
                f"`min_comparisons` must be at least {MIN_COMPARISONS}, not "
                f"{self.min_comparisons}: fewer show too little."
            )
        if self.level is not None and self.level not in LEVELS:
            raise UsageError(f"Unknown level {self.level!r}: choose one of {', '.join(LEVELS)}.")
        if self.level == ANSWER:
            raise UsageError(
                "`level` cannot be answer: a run has no parsed answers yet. Choose bits, tokens or "
                "text."
            )
        if self.model is not None and not self.model.strip():
            raise UsageError(
                "`model` is empty: name the model that must have been asked, or leave it out. A "
                "shell variable may be unset."
            )
        if self.max_age is not None:
            parse_duration(self.max_age)
        self._settle_kernels()

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
        """Most distinct answers a prompt may have; None if a baseline alone decides."""
        if self.max_distinct is None and self.baseline is None:
            return DEFAULT_MAX_DISTINCT
        return self.max_distinct

    def level_of(self, kernels: str) -> str:
        """The level that a kernels setting is judged by."""
        level: str | None = self.level
        if level is not None:
            return level
        return BITS if KernelSettings.parse(kernels).claims_invariance else TOKENS

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


def parse_duration(text: str) -> timedelta:
    """A duration such as `90s`, `30m`, `2h`, `7d`, `1w` or `1d12h`.

    Raises UsageError if `text` is none, or is zero.
    """
    parts = DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text or not parts:
        raise UsageError(f"`max_age` must be a duration such as 30m, 2h or 7d, not {text!r}.")
    try:
        duration = sum((timedelta(**{UNITS[u]: float(n)}) for n, u in parts), timedelta())
    except OverflowError as error:
        raise UsageError(f"`max_age` is too long: {text!r}.") from error
    if not duration:
        raise UsageError(f"`max_age` must be longer than zero, not {text!r}.")
    return duration


def _default_kernels(available: Sequence[str]) -> str:
    if BATCH_INVARIANT in available:
        return BATCH_INVARIANT
    if len(available) == 1:
        return available[0]
    # To judge stock because the rest is a subset would be a guess, and a gate must not guess.
    example = next((name for name in available if name != STOCK), STOCK)
    raise UsageError(
        f"The run has {', '.join(available)}: choose by `kernels` which to judge, such as "
        f"{example}."
    )
