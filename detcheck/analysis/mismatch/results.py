"""The results of a measurement of sampler against trainer: rows, headline, missing links."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from detcheck.analysis.mismatch.measures import MismatchMeasures
from detcheck.errors import RunDirectoryError

MISMATCH_FILE = "mismatch.json"
SCHEMA = 1
_MAY_BE_NONE = ("trainer_layout", "trainer_dtype", "rounding")
"""Fields that are None in a report; anywhere else null stands for a number."""

WHOLE = "whole"
RECORDED_DECODE = "recorded-decode"
DECODE_PREFILL = "decode-prefill"
PREFILL_KERNELS = "prefill-kernels"
PREFILL_LAYOUT = "prefill-layout"
LAYOUT_DTYPE = "layout-dtype"
LINKS = (RECORDED_DECODE, DECODE_PREFILL, PREFILL_KERNELS, PREFILL_LAYOUT, LAYOUT_DTYPE)
"""The links between what the sampler recorded and what the trainer computes, in order."""
LINK_NAMES = {
    WHOLE: "recorded ↔ trainer",
    RECORDED_DECODE: "recorded ↔ decode steps",
    DECODE_PREFILL: "decode steps ↔ one prefill",
    PREFILL_KERNELS: "prefill ↔ the trainer's kernels",
    PREFILL_LAYOUT: "prefill ↔ the trainer's layout",
    LAYOUT_DTYPE: "layout ↔ the trainer's dtype",
}


class MismatchRow(MismatchMeasures, frozen=True):
    """One comparison and its measures."""

    kernels: str
    """Of the sampler."""
    link: str
    """`whole`, or one link of the chain."""
    trainer_layout: str | None
    """None for links before the trainer's layout."""
    trainer_dtype: str | None
    """The same; of `prefill-layout` the sampler's dtype."""

    @classmethod
    def of(
        cls, measures: MismatchMeasures, kernels: str, link: str, layout: str | None = None,
        dtype: str | None = None,
    ) -> MismatchRow:  # fmt: skip
        """The row of `measures`."""
        found = msgspec.structs.asdict(measures)
        return cls(kernels=kernels, link=link, trainer_layout=layout, trainer_dtype=dtype, **found)

    @property
    def arm(self) -> str:
        """Its kernels, layout and dtype in words."""
        parts = (self.kernels, self.trainer_layout, self.trainer_dtype)
        return ", ".join(part for part in parts if part is not None)


class MismatchSlice(msgspec.Struct, frozen=True, kw_only=True):
    """The whole gap over some of the tokens: those of a position or of a kind."""

    kernels: str
    trainer_layout: str
    trainer_dtype: str
    by: str
    """`position` or `entropy`."""
    name: str
    """Such as `16–63`, or `high` for the fifth of the tokens with the highest entropy."""
    tokens: int
    k3: float
    mean_abs: float
    max_abs: float
    bitwise_tokens: float


class MissingLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link that could not be recomputed."""

    kernels: str
    link: str
    trainer_layout: str | None = None
    trainer_dtype: str | None = None
    reason: str


class NamedFault(msgspec.Struct, frozen=True, kw_only=True):
    """A meaning of the recorded log-probabilities that fits them better than the stated one."""

    kernels: str
    fault: str
    """Its short name, such as `temperature`."""
    sentence: str
    mean_abs: float
    """Mean gap that is left under this meaning."""
    stated_mean_abs: float
    """Mean gap under the stated meaning."""


class MismatchTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one whole comparison, for pictures; at most a few thousand."""

    kernels: str
    trainer_layout: str
    trainer_dtype: str
    positions: tuple[int, ...]
    sampler: tuple[float, ...]
    """Log-probabilities, in nats."""
    trainer: tuple[float, ...]


class MismatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement, as `mismatch.json` keeps it."""

    rows: tuple[MismatchRow, ...]
    headline: str
    """Which link carries the gap, for each kernels setting."""
    schema: int = SCHEMA
    detcheck: str = ""
    created: str = ""
    model: str = ""
    source: str = ""
    """Who sampled: an engine, or a file of rollouts."""
    logprobs: str = "raw"
    """`raw` or `processed`: the meaning that the recorded log-probabilities are held to."""
    temperature: float = 1.0
    sampler_dtype: str = ""
    trainer_kernels: str = "same"
    rounding: str | None = None
    """A sentence if the recorded log-probabilities are rounded."""
    rounding_unit: float = 0.0
    """The most that this rounding can have changed one of them, in nats."""
    unproven: dict[str, str] = {}
    """Kernels settings whose proof failed, and why."""
    faults: tuple[NamedFault, ...] = ()
    missing: tuple[MissingLink, ...] = ()
    slices: tuple[MismatchSlice, ...] = ()
    tokens: tuple[MismatchTokens, ...] = ()

    def wholes(self) -> tuple[MismatchRow, ...]:
        """The rows of the whole gap, one for each kernels setting, layout and dtype."""
        return tuple(row for row in self.rows if row.link == WHOLE)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


def is_mismatch(folder: Path) -> bool:
    """True if `folder` holds a measurement of sampler against trainer."""
    return (folder / MISMATCH_FILE).is_file()


def load_mismatch(folder: Path) -> MismatchReport:
    """The measurement kept in `folder`. Raises RunDirectoryError if it cannot be read."""
    file = folder / MISMATCH_FILE
    try:
        report = msgspec.convert(_numbers(msgspec.json.decode(file.read_bytes())), MismatchReport)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{folder} holds no {MISMATCH_FILE}: give a folder that `detcheck mismatch` wrote."
        ) from error
    except (OSError, msgspec.DecodeError) as error:
        raise RunDirectoryError(f"{file} cannot be read ({error}): measure again.") from error
    if report.schema != SCHEMA:
        raise RunDirectoryError(
            f"{file} has schema {report.schema}, and this detcheck reads {SCHEMA}: measure again."
        )
    return report


def _numbers(data: Any, name: str = "") -> Any:
    """`data` from JSON, in which a number that is not finite is null, with NaN instead."""
    if isinstance(data, dict):
        return {key: _numbers(value, key) for key, value in data.items()}
    if isinstance(data, list):
        return [_numbers(value) for value in data]
    return math.nan if data is None and name not in _MAY_BE_NONE else data
