"""Read the two line files of a run directory: variants, and completions as columns.

A run may hold a million completions, so these are parsed a block of lines at a time and kept as
plain arrays; nothing here keeps a Python object for each.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from detcheck.completion import fingerprint_text, fingerprint_token_ids
from detcheck.errors import RunDirectoryError
from detcheck.rundir.files import parse, sealed_blocks
from detcheck.rundir.records import (
    RUN_FILE,
    CompletionTable,
    ConditionRecord,
    Float32Array,
    Int32Array,
    StoredVariant,
)

NAN = float("nan")
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)


def load_variants(
    path: Path, seal: Mapping[str, Any], num_prompts: int
) -> tuple[StoredVariant, ...]:
    """All stored variants; raises RunDirectoryError where one is damaged or was edited."""
    variants: list[StoredVariant] = []
    known: set[tuple[int, str]] = set()
    for first, lines in _numbered(path, seal):
        for number, line in enumerate(lines, start=first):
            try:
                variant = _variant(parse(line), num_prompts)
            except _MALFORMED as error:
                raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
            if variant.fingerprint != _fingerprint(variant):
                raise RunDirectoryError(
                    f"{path} was edited: the fingerprint at line {number} does not match its "
                    "tokens."
                )
            key = (variant.prompt_index, variant.fingerprint)
            if key in known:
                raise RunDirectoryError(f"{path} was edited: line {number} is there twice.")
            known.add(key)
            variants.append(variant)
    return tuple(variants)


def _variant(data: Mapping[str, Any], num_prompts: int) -> StoredVariant:
    variant = StoredVariant(
        prompt_index=data["prompt_index"],
        fingerprint=data["fingerprint"],
        text=data["text"],
        token_ids=_int32(data.get("token_ids")),
        token_ends=_int32(data.get("token_ends")),
        runner_up_token_ids=_int32(data.get("runner_up_token_ids")),
        gaps=_float32(data.get("gaps")),
        runner_up_texts=_texts(data.get("runner_up_texts")),
    )
    if type(variant.prompt_index) is not int or not 0 <= variant.prompt_index < num_prompts:
        raise ValueError("no such prompt")
    if not isinstance(variant.text, str):
        raise TypeError("text is not text")
    columns = (
        variant.token_ids,
        variant.token_ends,
        variant.runner_up_token_ids,
        variant.gaps,
        variant.runner_up_texts,
    )
    if len({len(column) for column in columns if column is not None}) > 1:
        raise ValueError("columns of unequal length")
    return variant


def _texts(values: Sequence[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise TypeError("not a list of texts")
    return tuple(values)


def _fingerprint(variant: StoredVariant) -> str:
    if variant.token_ids is None:
        return fingerprint_text(variant.text)
    return fingerprint_token_ids(variant.token_ids)  # type: ignore[arg-type]


def _int32(values: Sequence[int] | None) -> Int32Array | None:
    if values is None:
        return None
    exact = np.array(values)
    if exact.ndim != 1 or (exact.size and exact.dtype.kind != "i"):
        raise TypeError("not a list of whole numbers")
    if exact.size and not -(2**31) <= exact.min() <= exact.max() < 2**31:
        raise OverflowError("beyond 32 bits")
    return exact.astype(np.int32)


def _float32(values: Sequence[float | None] | None) -> Float32Array | None:
    """Gaps; null, which is how a NaN or an infinity is written, comes back as NaN."""
    if values is None:
        return None
    numbers = np.asarray(values, dtype=np.float32)
    if numbers.ndim != 1:
        raise TypeError("not a list of numbers")
    return numbers


class _Columns:
    """The columns of a completion table while they grow."""

    def __init__(
        self, variants: Sequence[StoredVariant], records: Sequence[ConditionRecord]
    ) -> None:
        by_prompt: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for number, variant in enumerate(variants):
            by_prompt[variant.prompt_index][variant.fingerprint] = number
        # One dictionary a condition: a completion cannot refer to another prompt's variant.
        self._variants = [by_prompt[record.prompt_index] for record in records]
        self.condition, self.trial, self.request = array("i"), array("i"), array("i")
        self.variant, self.rows_max, self.query_tokens_max = array("i"), array("i"), array("i")
        self.rows_mean, self.noise = array("f"), array("f")
        self.digest, self.has_digest = array("Q"), array("b")

    def extend(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append completions; raises one of _MALFORMED, with columns of unequal length then."""
        conditions = [row["condition"] for row in rows]
        if min(conditions, default=0) < 0:
            raise ValueError("no such condition")
        self.condition.extend(conditions)
        self.trial.extend([row["trial"] for row in rows])
        self.request.extend([row["request"] for row in rows])
        self.variant.extend(
            [
                -1 if row["fingerprint"] is None else self._variants[condition][row["fingerprint"]]
                for row, condition in zip(rows, conditions, strict=True)
            ]
        )
        observed = [row.get("observed_batch") for row in rows]
        self.rows_max.extend([0 if batch is None else batch["rows_max"] for batch in observed])
        self.rows_mean.extend([0.0 if batch is None else batch["rows_mean"] for batch in observed])
        self.query_tokens_max.extend(
            [0 if batch is None else batch["query_tokens_max"] for batch in observed]
        )
        noise = [row.get("noise") for row in rows]
        self.noise.extend([NAN if value is None else value for value in noise])
        digests = [row.get("logprob_digest") for row in rows]
        self.digest.extend([0 if value is None else int(value, 16) for value in digests])
        self.has_digest.extend([value is not None for value in digests])

    def table(self) -> CompletionTable:
        """The columns as arrays, digests as small codes."""
        return CompletionTable(
            condition=np.frombuffer(self.condition, dtype=np.int32),
            trial=np.frombuffer(self.trial, dtype=np.int32),
            request=np.frombuffer(self.request, dtype=np.int32),
            variant=np.frombuffer(self.variant, dtype=np.int32),
            rows_max=np.frombuffer(self.rows_max, dtype=np.int32),
            rows_mean=np.frombuffer(self.rows_mean, dtype=np.float32),
            query_tokens_max=np.frombuffer(self.query_tokens_max, dtype=np.int32),
            noise=np.frombuffer(self.noise, dtype=np.float32),
            digest=_codes(
                np.frombuffer(self.digest, dtype=np.uint64),
                np.frombuffer(self.has_digest, dtype=np.int8) > 0,
            ),
        )


def _codes(digests: npt.NDArray[np.uint64], present: npt.NDArray[np.bool_]) -> Int32Array:
    codes = np.full(len(digests), -1, dtype=np.int32)
    codes[present] = np.unique(digests[present], return_inverse=True)[1]
    return codes


def load_completions(
    path: Path,
    seal: Mapping[str, Any],
    variants: Sequence[StoredVariant],
    records: Sequence[ConditionRecord],
) -> CompletionTable:
    """All completions as columns; raises RunDirectoryError where a line is damaged.

    Also where the conditions of `run.json` record other numbers of completions and failures.
    """
    columns = _Columns(variants, records)
    for first, lines in _numbered(path, seal):
        rows = _parse_block(path, first, lines)
        try:
            columns.extend(rows)
        except _MALFORMED as error:
            number = first + _first_bad(_Columns(variants, records), rows)
            raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
    table = columns.table()
    _check_counts(path, table, records)
    return table


def _parse_block(path: Path, first: int, lines: Sequence[bytes]) -> list[Any]:
    """One value a line, parsed at once where that works: it is several times as fast."""
    try:
        rows = orjson.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines):
            return list(rows)
    except orjson.JSONDecodeError:
        pass
    values = []
    for number, line in enumerate(lines, start=first):
        try:
            values.append(parse(line))
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
    return values


def _first_bad(scratch: _Columns, rows: Sequence[Any]) -> int:
    """Index of the first row that cannot be appended."""
    for index, row in enumerate(rows):
        try:
            scratch.extend([row])
        except _MALFORMED:
            return index
    return len(rows) - 1


def _check_counts(path: Path, table: CompletionTable, records: Sequence[ConditionRecord]) -> None:
    failed = table.variant < 0
    total = np.bincount(table.condition, minlength=len(records))
    failures = np.bincount(table.condition[failed], minlength=len(records))
    for record, count, failures_here in zip(
        records, total.tolist(), failures.tolist(), strict=True
    ):
        if (record.completed, record.failed) != (count - failures_here, failures_here):
            raise RunDirectoryError(
                f"{path} holds {count} completions of {record.condition_id} where {RUN_FILE} "
                f"records {record.completed + record.failed}: it was edited."
            )
    if min(table.trial.min(initial=0), table.request.min(initial=0)) < 0:
        raise RunDirectoryError(f"{path} was edited: trials and requests count from 0.")


def _numbered(path: Path, seal: Mapping[str, Any]) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines) block by block; lines count from 1."""
    first = 1
    for lines in sealed_blocks(path, seal):
        yield first, lines
        first += len(lines)
