"""Read the two line files of a run directory: variants, and completions as columns.

A run may hold a million completions, so they are parsed a block of lines at a time and kept as
arrays; no Python object is kept for each.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detcheck.completion import fingerprint_text, fingerprint_token_ids
from detcheck.errors import RunDirectoryError
from detcheck.rundir.files import SealRecord, parse, sealed_blocks
from detcheck.rundir.records import (
    RUN_FILE,
    CompletionLine,
    CompletionTable,
    ConditionRecord,
    Float32Array,
    Int32Array,
    StoredVariant,
    VariantLine,
)
from detcheck.text import count

NAN = float("nan")
_MALFORMED = (ValueError, KeyError, IndexError, OverflowError)


def load_variants(path: Path, seal: SealRecord, num_prompts: int) -> tuple[StoredVariant, ...]:
    """All stored variants; raises RunDirectoryError if one is damaged or was edited."""
    variants: list[StoredVariant] = []
    known: set[tuple[int, str]] = set()
    for first, lines in _numbered(path, seal):
        for number, line in enumerate(lines, start=first):
            try:
                variant = _variant(parse(line, VariantLine), num_prompts)
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


def _variant(line: VariantLine, num_prompts: int) -> StoredVariant:
    if line.prompt_index >= num_prompts:
        raise ValueError("no such prompt")
    columns = (
        line.token_ids,
        line.token_ends,
        line.runner_up_token_ids,
        line.gaps,
        line.runner_up_texts,
    )
    if len({len(column) for column in columns if column is not None}) > 1:
        raise ValueError("columns of unequal length")
    return StoredVariant(
        prompt_index=line.prompt_index,
        fingerprint=line.fingerprint,
        text=line.text,
        token_ids=_int32(line.token_ids),
        token_ends=_int32(line.token_ends),
        runner_up_token_ids=_int32(line.runner_up_token_ids),
        gaps=None if line.gaps is None else np.array(line.gaps, dtype=np.float32),
        runner_up_texts=line.runner_up_texts,
    )


def _fingerprint(variant: StoredVariant) -> str:
    if variant.token_ids is None:
        return fingerprint_text(variant.text)
    return fingerprint_token_ids(variant.token_ids)  # type: ignore[arg-type]


def _int32(values: Sequence[int] | None) -> Int32Array | None:
    return None if values is None else np.array(values, dtype=np.int32)


class _Columns:
    """The columns of a completion table while they grow."""

    def __init__(
        self, variants: Sequence[StoredVariant], records: Sequence[ConditionRecord]
    ) -> None:
        by_prompt: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for number, variant in enumerate(variants):
            by_prompt[variant.prompt_index][variant.fingerprint] = number
        # One dictionary a condition: a completion cannot name another prompt's variant.
        self._variants = [by_prompt[record.prompt_index] for record in records]
        self.condition, self.trial, self.request = array("i"), array("i"), array("i")
        self.variant, self.rows_max, self.query_tokens_max = array("i"), array("i"), array("i")
        self.rows_mean, self.noise = array("f"), array("f")
        self.digest, self.has_digest = array("Q"), array("b")
        self.top_logprobs: dict[int, Float32Array] = {}

    def extend(self, lines: Sequence[CompletionLine]) -> None:
        """Append completions; raises one of _MALFORMED, with columns of unequal length then."""
        for row, line in enumerate(lines, start=len(self.condition)):
            if line.top_logprobs is not None:
                self.top_logprobs[row] = np.array(line.top_logprobs, dtype=np.float32)
        self.condition.extend([line.condition for line in lines])
        self.trial.extend([line.trial for line in lines])
        self.request.extend([line.request for line in lines])
        variants = self._variants
        self.variant.extend(
            [
                -1 if line.fingerprint is None else variants[line.condition][line.fingerprint]
                for line in lines
            ]
        )
        batches = [line.observed_batch for line in lines]
        self.rows_max.extend([0 if batch is None else batch.rows_max for batch in batches])
        self.rows_mean.extend([0.0 if batch is None else batch.rows_mean for batch in batches])
        self.query_tokens_max.extend(
            [0 if batch is None else batch.query_tokens_max for batch in batches]
        )
        self.noise.extend([NAN if line.noise is None else line.noise for line in lines])
        digests = [line.logprob_digest for line in lines]
        self.digest.extend([0 if digest is None else int(digest, 16) for digest in digests])
        self.has_digest.extend([digest is not None for digest in digests])

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
            top_logprobs=self.top_logprobs,
        )


def _codes(digests: npt.NDArray[np.uint64], present: npt.NDArray[np.bool_]) -> Int32Array:
    codes = np.full(len(digests), -1, dtype=np.int32)
    codes[present] = np.unique(digests[present], return_inverse=True)[1]
    return codes


def load_completions(
    path: Path,
    seal: SealRecord,
    variants: Sequence[StoredVariant],
    records: Sequence[ConditionRecord],
) -> CompletionTable:
    """All completions as columns; raises RunDirectoryError if a line is damaged.

    Raises it also if `run.json` records another number of completions or failures.
    """
    columns = _Columns(variants, records)
    for first, lines in _numbered(path, seal):
        parsed = _parse_block(path, first, lines)
        try:
            columns.extend(parsed)
        except _MALFORMED as error:
            number = first + _first_bad(_Columns(variants, records), parsed)
            raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
    table = columns.table()
    _check_counts(path, table, records)
    return table


def _parse_block(path: Path, first: int, lines: Sequence[bytes]) -> list[CompletionLine]:
    """One record a line; parsed all at once if that works, which is several times as fast."""
    try:
        records: list[CompletionLine] = parse(b"[" + b",".join(lines) + b"]", list[CompletionLine])
        if len(records) == len(lines):
            return records
    except ValueError:
        pass
    records = []
    for number, line in enumerate(lines, start=first):
        try:
            records.append(parse(line, CompletionLine))
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
    return records


def _first_bad(scratch: _Columns, lines: Sequence[CompletionLine]) -> int:
    """Index of the first line that cannot be appended."""
    for index, line in enumerate(lines):
        try:
            scratch.extend([line])
        except _MALFORMED:
            return index
    return len(lines) - 1


def _check_counts(path: Path, table: CompletionTable, records: Sequence[ConditionRecord]) -> None:
    failed = table.variant < 0
    total = np.bincount(table.condition, minlength=len(records))
    failures = np.bincount(table.condition[failed], minlength=len(records))
    for record, number, failures_here in zip(
        records, total.tolist(), failures.tolist(), strict=True
    ):
        if (record.completed, record.failed) != (number - failures_here, failures_here):
            raise RunDirectoryError(
                f"{path} holds {count(number, 'completion')} of {record.condition_id}, but "
                f"{RUN_FILE} records {record.completed + record.failed}: it was edited."
            )


def _numbered(path: Path, seal: SealRecord) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines) block by block; lines count from 1."""
    first = 1
    for lines in sealed_blocks(path, seal):
        yield first, lines
        first += len(lines)
