"""What the counts can and cannot say: bounds, coverage, agreement.

A repeated load is no new evidence (see `loads.py`): of each load, the first completion counts. If
a repeat is seen to differ, loads do not decide the answer, every trial is a fresh draw, and all
count.

Completions of one trial are counted each: they sit at other positions. They are not independent
draws in the strict sense, so read the bound as "of loads like those that were tried".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcheck.analysis.loads import composition
from detcheck.analysis.results import Group, Statistics
from detcheck.analysis.seeds import SeedCells
from detcheck.analysis.variants import IntArray, Rows, Tally
from detcheck.rundir import Run

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class _Loads:
    """The completions of some conditions that came under distinct loads."""

    rows: IntArray
    trials: int
    """Distinct compositions of load that they came under."""


def group_statistics(run: Run, seeds: Sequence[SeedCells], rows: Rows) -> Statistics | None:
    """Statistics of one group; None if no completion came back.

    A variant counts once for each seed that gave it: it is another wanted sample.
    """
    by_seed = [
        (_distinct_loads(run, cells.conditions, rows), cells.reference)
        for cells in seeds
        if cells.reference is not None
    ]
    if not by_seed:
        return None
    answers = run.completions.variant
    counts = [np.unique(answers[loads.rows], return_counts=True)[1] for loads, _ in by_seed]
    compared = [_compared(run, loads.rows, reference) for loads, reference in by_seed]
    comparisons = sum(map(len, compared))
    together = np.concatenate(counts)
    return Statistics(
        comparisons=comparisons,
        differing=sum(
            int((answers[rows_of] != reference).sum())
            for rows_of, (_, reference) in zip(compared, by_seed, strict=True)
        ),
        differ_upper_bound=zero_upper_bound(comparisons)
        if all(len(of_seed) == 1 for of_seed in counts)
        else None,
        coverage=good_turing_coverage(together),
        chao1=chao1(together),
        effective_trials=sum(loads.trials for loads, _ in by_seed),
    )


def _compared(run: Run, rows: IntArray, reference: int) -> IntArray:
    """The completions of `rows` that came from a batch larger than one.

    Without the reference itself, which is the first completion with its answer.
    """
    table = run.completions
    own = rows[table.variant[rows] == reference].min()
    batch_size = np.array([record.batch_size for record in run.conditions])
    compared: IntArray = rows[(batch_size[table.condition[rows]] > 1) & (rows != own)]
    return compared


def good_turing_coverage(counts: npt.NDArray[np.int64]) -> float:
    """Estimated share of answers that belong to a seen variant: 1 - f1 / n (Good, 1953).

    `counts` are completions by variant, (variants,); f1 of them are 1, n is their sum.
    """
    return 1.0 - float((counts == 1).sum() / counts.sum())


def chao1(counts: npt.NDArray[np.int64]) -> float:
    """Lower bound on the number of variants there are (Chao, 1984), from completions by variant.

    Seen + f1² / (2 f2), or seen + f1 (f1 - 1) / 2 if no variant came back exactly twice.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    unseen = once**2 / (2 * twice) if twice else once * (once - 1) / 2
    return len(counts) + unseen


def zero_upper_bound(comparisons: int, confidence: float = CONFIDENCE) -> float:
    """Exact (Clopper-Pearson, one-sided) upper bound on a rate after 0 hits in `comparisons`.

    The rate p at which (1 - p)^n is 1 - confidence; 1.0 if nothing was compared.
    """
    if comparisons < 1:
        return 1.0
    return -math.expm1(math.log(1.0 - confidence) / comparisons)


def _distinct_loads(run: Run, conditions: Sequence[int], rows: Rows) -> _Loads:
    table = run.completions
    everything, first_of_load = [], []
    trials = compositions = 0
    repeats_agree = True
    for condition in conditions:
        here = rows.of([condition])
        here = here[table.variant[here] >= 0]
        composed = composition(run, condition, table.trial[here])
        load = composed.astype(np.int64) << 32 | table.request[here]
        _, first, inverse = np.unique(load, return_index=True, return_inverse=True)
        answers = table.variant[here]
        repeats_agree &= bool((answers[first][inverse] == answers).all())
        trials += len(np.unique(table.trial[here]))
        compositions += len(np.unique(composed))
        everything.append(here)
        first_of_load.append(here[first])
    if repeats_agree:
        return _Loads(np.concatenate(first_of_load), compositions)
    return _Loads(np.concatenate(everything), trials)


def agreement(run: Run, pairs: Tally) -> npt.NDArray[np.float64]:
    """(conditions, conditions): chance that a completion of each are the same variant.

    Within a condition, of two different completions. NaN across prompts, and if there are no two
    completions to compare.
    """
    prompt = np.array([record.prompt_index for record in run.conditions])
    matrix = np.full((len(prompt), len(prompt)), np.nan)
    for index in np.unique(prompt):
        conditions = np.flatnonzero(prompt == index)
        matrix[np.ix_(conditions, conditions)] = _agreement_block(pairs, conditions)
    return matrix


def _agreement_block(pairs: Tally, conditions: IntArray) -> npt.NDArray[np.float64]:
    here = pairs.of(conditions.tolist())
    _, column = np.unique(here.variant, return_inverse=True)
    counts = np.zeros((len(conditions), int(column.max(initial=-1)) + 1))
    counts[np.searchsorted(conditions, here.condition), column] = here.count
    total = counts.sum(axis=1)
    same = counts @ counts.T
    possible = np.outer(total, total)
    np.fill_diagonal(same, (counts * (counts - 1)).sum(axis=1))
    np.fill_diagonal(possible, total * (total - 1))
    return np.divide(same, possible, out=np.full_like(same, np.nan), where=possible > 0)


def total_agreement_rate(groups: Sequence[Group]) -> dict[str, float]:
    """TARr@N by kernels: of the prompts that were answered, the share with one answer to a seed.

    After Atil et al., "Non-Determinism of 'Deterministic' LLM Settings" (2024).
    """
    answered: dict[str, list[bool]] = {}
    for group in groups:
        if group.completions:
            answered.setdefault(group.kernels, []).append(group.distinct_within_seed == 1)
    return {kernels: sum(one) / len(one) for kernels, one in answered.items()}
