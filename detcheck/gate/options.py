"""What a gate is asked to hold: from the command line, and from `[tool.detcheck.gate]`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detcheck.errors import UsageError
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK, KernelSettings

TABLE = "[tool.detcheck.gate]"
DEFAULT_MAX_DISTINCT = 1


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What was asked for; None where nothing was. Raises UsageError where it cannot be meant."""

    max_distinct: int | None = None
    baseline: Path | None = None
    kernels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_distinct is not None and self.max_distinct < 1:
            raise UsageError(f"--max-distinct must be at least 1, not {self.max_distinct}.")
        if self.kernels is not None and not self.kernels:
            raise UsageError("--kernels names none: give one, such as --kernels batch-invariant.")
        for name in self.kernels or ():
            KernelSettings.parse(name)

    def over(self, fallback: GateOptions) -> GateOptions:
        """These options, and those of `fallback` where these are silent."""
        return GateOptions(
            fallback.max_distinct if self.max_distinct is None else self.max_distinct,
            fallback.baseline if self.baseline is None else self.baseline,
            fallback.kernels if self.kernels is None else self.kernels,
        )

    @property
    def limit(self) -> int | None:
        """Distinct answers allowed: 1 where neither a limit nor a baseline was asked for."""
        if self.max_distinct is None and self.baseline is None:
            return DEFAULT_MAX_DISTINCT
        return self.max_distinct

    def kernels_of(self, available: Sequence[str]) -> tuple[str, ...]:
        """The kernels to judge, of those that a run has.

        Unless named: batch-invariant where the run has it, else the only ones that it has.
        """
        if self.kernels is None:
            return (_default_kernels(available),)
        for name in self.kernels:
            if name not in available:
                raise UsageError(
                    f"The run has no {name} kernels, only {', '.join(available)}: run it with "
                    f"-k {name}, or judge others by --kernels."
                )
        return self.kernels


def split_kernels(text: str) -> tuple[str, ...]:
    """Kernels settings from a comma-separated list, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def read_options(pyproject: Path) -> GateOptions:
    """Options of `[tool.detcheck.gate]` in a pyproject.toml; none where there is no such file.

    Raises UsageError where the file cannot be read, or the table holds what a gate does not know.
    """
    try:
        document = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return GateOptions()
    except OSError as error:
        raise UsageError(f"{pyproject} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{pyproject} is not valid TOML: {error}.") from error
    table = document
    for key in ("tool", "detcheck", "gate"):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"{pyproject}: {TABLE} must be a table.")
    return _options(pyproject, table)


def _options(pyproject: Path, table: dict[str, Any]) -> GateOptions:
    values = {key.replace("_", "-"): value for key, value in table.items()}
    for key in values:
        if key not in ("max-distinct", "baseline", "kernels"):
            raise UsageError(
                f"{pyproject}: unknown key {key!r} in {TABLE}: known are max-distinct, baseline "
                "and kernels."
            )
    max_distinct, baseline = values.get("max-distinct"), values.get("baseline")
    if not (max_distinct is None or type(max_distinct) is int):
        raise UsageError(f"{pyproject}: max-distinct in {TABLE} must be a whole number.")
    if not (baseline is None or isinstance(baseline, str)):
        raise UsageError(f"{pyproject}: baseline in {TABLE} must be the path of a run.")
    return GateOptions(
        max_distinct,
        None if baseline is None else pyproject.parent / baseline,
        _kernels(pyproject, values.get("kernels")),
    )


def _kernels(pyproject: Path, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UsageError(f"{pyproject}: kernels in {TABLE} must be a name or a list of names.")
    return split_kernels(",".join(names))


def _default_kernels(available: Sequence[str]) -> str:
    if BATCH_INVARIANT in available:
        return BATCH_INVARIANT
    if len(available) == 1:
        return available[0]
    # Judging stock because the rest is a subset would be a guess, and a gate must not guess.
    raise UsageError(
        f"The run has {', '.join(available)}: say which to judge, such as --kernels "
        f"{next((name for name in available if name != STOCK), STOCK)}."
    )
