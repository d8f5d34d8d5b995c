"""The options of the trainer's side, and the limits of the verdict. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from detcheck.errors import UsageError
from detcheck.kernels.settings import AS_SERVED, KernelSettings
from detcheck.options import Option, check_types
from detcheck.targets import DTYPES

SAME = "same"
EMBEDDED = "embedded"
LAYOUTS = ("single", "padded", "packed")


class TrainerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the trainer computes. Raises UsageError, naming the field, if a value makes no sense."""

    trainer_layout: Annotated[
        tuple[str, ...],
        Option(
            "How the trainer lays out sequences, comma-separated. single: one a forward pass. "
            "padded: rows padded on the right. packed: several in one row, with position_ids that "
            "restart.",
            (),
            "LIST",
        ),
    ] = LAYOUTS
    trainer_dtype: Annotated[
        tuple[str, ...],
        Option(
            "Number types of the trainer's weights, comma-separated; same: the sampler's.",
            (),
            "LIST",
        ),
    ] = (SAME,)
    trainer_kernels: Annotated[
        str, Option("Kernels of the trainer; same: those of the sampler.", (), "NAME")
    ] = SAME
    trainer_model: Annotated[
        str | None,
        Option(
            "Hub id or folder of the trainer's model, if a server samples under another name; "
            "embedded: the embedded SmolLM2-135M-Instruct.",
            (),
            "NAME",
            default="the sampler's",
        ),
    ] = None
    logprobs: Annotated[
        Literal["auto", "raw", "processed"],
        Option(
            "Meaning of the sampler's log-probabilities. raw: of the logits. processed: of the "
            "logits divided by the temperature. auto: raw from an engine, processed from a file."
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        _check_choices("trainer layout", self.trainer_layout, LAYOUTS)
        known = (SAME, *(name for name in DTYPES if name != "auto"))
        _check_choices("trainer dtype", self.trainer_dtype, known)
        if self.trainer_kernels == AS_SERVED:
            raise UsageError(
                "The kernels as-served are those of a server: give `trainer_kernels` that this "
                "process can have, such as stock."
            )
        if self.trainer_kernels != SAME:
            KernelSettings.parse(self.trainer_kernels)


class MismatchLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits to hold a measurement to. Raises UsageError if one makes no sense."""

    max_k3: Annotated[
        float | None,
        Option("Fail if K3 of sampler against trainer exceeds this.", (), "X", default="no limit"),
    ] = None
    bitwise: Annotated[
        bool,
        Option("Fail if any token's log-probabilities differ between sampler and trainer."),
    ] = False
    min_tokens: Annotated[
        int, Option("With fewer chosen tokens the verdict is inconclusive.", (), "N")
    ] = 256

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_k3 is not None and not 0 <= self.max_k3 < float("inf"):
            raise UsageError(f"`max_k3` must be 0 or more, not {self.max_k3}.")
        if self.min_tokens < 1:
            raise UsageError(f"`min_tokens` must be at least 1, not {self.min_tokens}.")

    @property
    def any(self) -> bool:
        """True if there is a limit to judge by."""
        return self.max_k3 is not None or self.bitwise


def _check_choices(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in given:
        if value not in known:
            raise UsageError(f"Unknown {name} {value!r}: choose from {', '.join(known)}.")
    if not given or len(set(given)) != len(given):
        raise UsageError(f"Give each {name} once, such as {known[0]}.")
