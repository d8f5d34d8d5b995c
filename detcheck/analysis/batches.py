"""A group by batch size: counts, evidence that the batches were formed, speed and cost."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcheck.analysis.load_records import BatchEvidence, BatchSizeRow, PrefixCache, sum_known
from detcheck.analysis.variants import (
    IntArray,
    Rows,
    Tally,
    rank,
    rows_by_condition,
    tally,
)
from detcheck.evidence import FORWARD_PASSES, SERVER_COUNTERS, STREAMED_TOKENS
from detcheck.grid import sequences_per_trial
from detcheck.kernels.settings import AS_SERVED, STOCK
from detcheck.rundir import ConditionRecord, Run

CostKey = tuple[int, int, str, int, int]
"""(prompt index, batch size, placement, seed, choice)."""
StockRecords = dict[CostKey, ConditionRecord]
"""The conditions under stock kernels."""
SERVER_SHARE = 0.75
"""Share of a batch that must be seen if a server forms it: its counters are read only now and then,
and requests that are sent together are taken in one after the other."""
SHARED = 1.1
"""A server that computed so many times the requests it was sent had other clients too."""
HOW_OBSERVED = {
    FORWARD_PASSES: "counted over forward passes",
    SERVER_COUNTERS: "by the server's own counters",
    STREAMED_TOKENS: "by overlapping streams",
}


@dataclass(frozen=True, slots=True)
class Counted:
    """A run's completion table, gone through once for all groups."""

    pairs: Tally
    rows: Rows
    stock: StockRecords

    @classmethod
    def of(cls, run: Run) -> Counted:
        """Count the completions of `run`."""
        stock = {_cost_key(record): record for record in run.conditions if record.kernels == STOCK}
        return cls(tally(run), rows_by_condition(run), stock)


def _cost_key(record: ConditionRecord) -> CostKey:
    """What must agree for costs to be compared."""
    return record.prompt_index, record.batch_size, record.placement, record.seed, record.choice


def batch_size_row(
    run: Run,
    conditions: Sequence[int],
    counted: Counted,
    references: Mapping[int, int | None],
) -> BatchSizeRow:
    """Sum up conditions that differ in their seed only.

    `references` has the index of each seed's reference variant; None if nothing came back.
    """
    records = [run.conditions[index] for index in conditions]
    parts = [counted.pairs.of([index]) for index in conditions]
    rows = counted.rows.of(conditions)
    per_variant = rank(counted.pairs.of(conditions))[1]
    completions = int(per_variant.sum())
    return BatchSizeRow(
        placement=records[0].placement,
        batch_size=records[0].batch_size,
        asked=sum(record.due for record in records),
        completions=completions,
        failed=sum(record.failed for record in records),
        distinct=len(per_variant),
        distinct_within_seed=max(map(len, _by_sample(run, records, parts).values())),
        most_common=int(per_variant.max(initial=0)),
        differ_from_reference=completions
        - sum(
            int(part.count[part.variant == references[run.sample_of(record)]].sum())
            for part, record in zip(parts, records, strict=True)
        ),
        observed_rows_max=max(record.rows_max for record in records),
        observed_rows_mean=_rows_mean(run, records, rows),
        tokens_per_second=tokens_per_second(records),
        relative_cost=relative_cost(records, counted.stock),
        exact_repeats_differ=_exact_repeats(run, conditions, counted.rows),
        repeats_differ=sum_known(
            repeats_differ(run, counted.rows.of([index])) for index in conditions
        ),
        failures=_failures(records),
        retries=sum(record.retries for record in records),
        seed=run.sample_of(records[0]) if len(records) == 1 else None,
        choice=records[0].choice if len(records) == 1 and run.traits.choices > 1 else None,
    )


def _by_sample(
    run: Run, records: Sequence[ConditionRecord], parts: Sequence[Tally]
) -> dict[int, set[int]]:
    """The variants of each wanted sample; `parts` are the counts of each condition."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for record, part in zip(records, parts, strict=True):
        found[run.sample_of(record)].update(part.variant.tolist())
    return found


def _failures(records: Sequence[ConditionRecord]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.failures)
    return dict(total)


def _rows_mean(run: Run, records: Sequence[ConditionRecord], rows: IntArray) -> float | None:
    """Mean requests a forward pass; over completions if no condition tells it as a whole."""
    means = [record.rows_mean for record in records if record.rows_mean is not None]
    if means:
        return sum(means) / len(means)
    observed = rows[run.completions.rows_max[rows] > 0]
    return float(run.completions.rows_mean[observed].mean()) if len(observed) else None


def _exact_repeats(run: Run, conditions: Sequence[int], rows: Rows) -> int | None:
    """Completions that differ in an exact repeat; None if a server formed the batches.

    No two batches that a server forms need to be alike.
    """
    exact = [
        index
        for index in conditions
        if run.traits.repeats_exactly or run.conditions[index].batch_size * run.traits.choices == 1
    ]
    return sum_known(repeats_differ(run, rows.of([index]), by_bits=True) for index in exact)


def repeats_differ(run: Run, rows: IntArray, *, by_bits: bool = False) -> int | None:
    """Completions that repeat a request of trial 0 and whose answer differs from its.

    The first `repeat_trial` trials send the same requests. Answers differ by fingerprint; with
    `by_bits` also by log-probability digest if both have one. None if no request was answered both
    in trial 0 and in a repeat. `rows` are the completions of one condition.
    """
    table = run.completions
    answered = rows[table.variant[rows] >= 0]
    trial = table.trial[answered]
    first = answered[trial == 0]
    repeats = answered[(trial > 0) & (trial < run.experiment.repeat_trial)]
    order = np.argsort(table.request[first])
    first = first[order]
    at = np.searchsorted(table.request[first], table.request[repeats])
    found = at < len(first)
    found[found] = table.request[first[at[found]]] == table.request[repeats[found]]
    a, b = first[at[found]], repeats[found]
    if not len(a):
        return None
    differ = table.variant[a] != table.variant[b]
    if by_bits:
        digests = (table.digest[a] >= 0) & (table.digest[b] >= 0)
        differ |= digests & (table.digest[a] != table.digest[b])
    return int(differ.sum())


def evidence(
    records: Sequence[ConditionRecord],
    *,
    open_loop: bool = False,
    choices: int = 1,
    traffic: str = "alone",
) -> BatchEvidence:
    """Whether each batch size that was asked for was seen.

    In full in some forward pass; or, if a server forms the batches, SERVER_SHARE of it. `choices`
    are those of each request that is no filler: a server computes and counts each by itself.
    """
    sent = _Sent(choices, traffic)
    asked = max(sent(record) for record in records)
    seen = max(record.rows_max for record in records)
    short = [record for record in records if record.rows_max < _enough(record, open_loop, sent)]
    if seen == 0:
        sentence = _nothing_seen(records)
    elif short:
        worst = max(short, key=lambda record: record.batch_size)
        sentence = _short(worst, sent(worst), seen)
    else:
        sources = dict.fromkeys(record.evidence_source or FORWARD_PASSES for record in records)
        observed_by = ", ".join(HOW_OBSERVED.get(source, source) for source in sources)
        where = " under open-loop arrivals" if open_loop else ""
        shared = ", other clients' requests among them" if _shared(records, sent) else ""
        sentence = f"batches of up to {seen} of {asked} asked{where}, {observed_by}{shared}"
    return BatchEvidence(not short, asked, seen, sentence)


@dataclass(frozen=True, slots=True)
class _Sent:
    """Counts requests as the evidence counts them: a server's counters count each choice."""

    choices: int
    traffic: str

    def __call__(self, record: ConditionRecord, batch_size: int | None = None) -> int:
        """Requests, or sequences if counters tell, of a batch; by default the record's own."""
        size = record.batch_size if batch_size is None else batch_size
        counted = record.evidence_source == SERVER_COUNTERS
        return sequences_per_trial(size, self.traffic, self.choices if counted else 1)


def _enough(record: ConditionRecord, open_loop: bool, sent: _Sent) -> int:
    """Requests that must have been seen together for a condition to count as loaded."""
    if open_loop:  # how many requests meet is up to their arrivals: some must
        return sent(record, min(2, record.batch_size))
    if record.evidence_source in ("", FORWARD_PASSES):
        return record.batch_size
    return math.ceil(SERVER_SHARE * sent(record))


def _shared(records: Sequence[ConditionRecord], sent: _Sent) -> bool:
    """True if a server computed more requests together than it was sent.

    By the mean over its iterations. Its largest value counts only beyond the largest batch size,
    since a gauge may still show the condition before.
    """
    largest = max(sent(record) for record in records)
    return any(
        (record.rows_mean or 0.0) > SHARED * sent(record) or record.rows_max > largest
        for record in records
    )


def _nothing_seen(records: Sequence[ConditionRecord]) -> str:
    if records[0].kernels != AS_SERVED:
        return "no batches were observed"
    return "no batches were observed: neither counters of the server nor its streams show any"


def _short(worst: ConditionRecord, asked: int, seen: int) -> str:
    where = f" at {worst.placement}" if worst.placement else ""
    if worst.rows_max == 0:
        return f"no batches were observed where {asked} were asked{where}"
    if seen == 1:
        return f"this server answered one request at a time{where}: no batch was ever formed"
    return f"batches of up to {worst.rows_max} where {asked} were asked{where}"


def prefix_cache(run: Run, conditions: Sequence[int], rows: Rows) -> PrefixCache | None:
    """Compare the very first answer of a group, which found no cache, with those that follow it.

    Only within its own condition, so that the load is the same. None if no server was asked.
    """
    if not run.traits.forms_batches:
        return None
    counted = [run.conditions[index].prefix_cache_hits for index in conditions]
    hits = [number for number in counted if number is not None]
    table = run.completions
    answers = table.variant[rows.of([min(conditions)])]
    later = answers[1:][answers[1:] >= 0]
    differs = None
    if len(later) > 1 and answers[0] >= 0:
        differs = not bool((later == answers[0]).any())
    return PrefixCache(differs, len(later), sum(hits) if hits else None)


def tokens_per_second(records: Sequence[ConditionRecord]) -> float | None:
    """Generated tokens a second over all `records`, fillers included; None if none was timed."""
    elapsed = sum(record.elapsed_s for record in records)
    return sum(record.generated_tokens for record in records) / elapsed if elapsed > 0 else None


def relative_cost(records: Sequence[ConditionRecord], stock: StockRecords) -> float | None:
    """Time a token as a multiple of stock's, over the batch sizes that were timed under both.

    None for stock itself, and if no batch size was timed under both.
    """
    pairs = [
        (record, other)
        for record in records
        if record.kernels != STOCK
        and (other := stock.get(_cost_key(record))) is not None
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
