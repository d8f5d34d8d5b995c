"""A group by batch size: counts, evidence that the batches were formed, speed and cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detcheck.analysis.results import BatchEvidence, BatchSizeRow
from detcheck.analysis.variants import IntArray, Tally
from detcheck.experiment import STOCK
from detcheck.rundir import ConditionRecord, Run

StockRecords = dict[tuple[int, int], ConditionRecord]
"""(prompt index, batch size) -> the condition under stock kernels."""


def batch_size_row(
    run: Run,
    condition: int,
    pairs: Tally,
    rows: IntArray,
    *,
    reference: int | None,
    stock: StockRecords,
) -> BatchSizeRow:
    """Sum up one condition; `pairs` are those of its group, `rows` its own."""
    record = run.conditions[condition]
    here = pairs.of([condition])
    same = int(here.count[here.variant == reference].sum()) if reference is not None else 0
    return BatchSizeRow(
        batch_size=record.batch_size,
        asked=record.asked,
        completions=int(here.count.sum()),
        failed=record.failed,
        distinct=len(here.variant),
        most_common=int(here.count.max(initial=0)),
        differ_from_reference=int(here.count.sum()) - same,
        observed_rows_max=record.rows_max,
        observed_rows_mean=_rows_mean(run, rows),
        tokens_per_second=record.tokens_per_second,
        relative_cost=relative_cost([record], stock),
        exact_repeats_differ=exact_repeats_differ(run, rows),
    )


def _rows_mean(run: Run, rows: IntArray) -> float | None:
    """Mean requests a forward pass over the completions whose batches were observed."""
    observed = rows[run.completions.rows_max[rows] > 0]
    return float(run.completions.rows_mean[observed].mean()) if len(observed) else None


def exact_repeats_differ(run: Run, rows: IntArray) -> int | None:
    """Requests of trial 1 whose answer differs from that of trial 0, which it repeats exactly.

    Answers differ by fingerprint, or by log-probability digest where both have one. None where
    no request came back in both trials.
    """
    table = run.completions
    answered = rows[table.variant[rows] >= 0]
    first, second = (answered[table.trial[answered] == trial] for trial in (0, 1))
    _, in_first, in_second = np.intersect1d(
        table.request[first], table.request[second], return_indices=True
    )
    a, b = first[in_first], second[in_second]
    if not len(a):
        return None
    digests = (table.digest[a] >= 0) & (table.digest[b] >= 0)
    differ = (table.variant[a] != table.variant[b]) | (
        digests & (table.digest[a] != table.digest[b])
    )
    return int(differ.sum())


def evidence(records: Sequence[ConditionRecord]) -> BatchEvidence:
    """Whether each batch size that was asked for was seen in full in some forward pass."""
    asked = max(record.batch_size for record in records)
    seen = max(record.rows_max for record in records)
    short = [record for record in records if record.rows_max < record.batch_size]
    if seen == 0:
        sentence = "no batches were observed"
    elif not short:
        sentence = f"batches of up to {seen} of {asked} asked, counted over forward passes"
    else:
        worst = max(short, key=lambda record: record.batch_size)
        sentence = (
            f"batches of up to {worst.rows_max} where {worst.batch_size} were asked"
            if worst.rows_max
            else f"no batches were observed where {worst.batch_size} were asked"
        )
    return BatchEvidence(not short, asked, seen, sentence)


def tokens_per_second(records: Sequence[ConditionRecord]) -> float | None:
    """Generated tokens a second over all of them, fillers included; None where nothing ran."""
    elapsed = sum(record.elapsed_s for record in records)
    return sum(record.generated_tokens for record in records) / elapsed if elapsed > 0 else None


def stock_records(run: Run) -> StockRecords:
    """The conditions under stock kernels, by what cost is compared at."""
    return {
        (record.prompt_index, record.batch_size): record
        for record in run.conditions
        if record.kernels == STOCK
    }


def relative_cost(records: Sequence[ConditionRecord], stock: StockRecords) -> float | None:
    """Time a token against stock's, over the batch sizes that both were timed at.

    None for stock itself, and where no batch size was timed under both.
    """
    pairs = [
        (record, other)
        for record in records
        if record.kernels != STOCK
        and (other := stock.get((record.prompt_index, record.batch_size))) is not None
        and _timed(record)
        and _timed(other)
    ]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return _seconds_per_token(ours) / _seconds_per_token(theirs)


def _timed(record: ConditionRecord) -> bool:
    return record.elapsed_s > 0 and record.generated_tokens > 0


def _seconds_per_token(records: Sequence[ConditionRecord]) -> float:
    tokens = sum(record.generated_tokens for record in records)
    return sum(record.elapsed_s for record in records) / tokens
