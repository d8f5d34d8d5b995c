"""An analysis as pandas tables, and as a table in a notebook. pandas is imported when called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from detcheck.analysis.results import Analysis, BatchSizeRow, Flip, Group
from detcheck.analysis.summary import summary_rows
from detcheck.grid import condition_id
from detcheck.rundir.frames import table_html
from detcheck.text import count

if TYPE_CHECKING:
    import pandas as pd

ROW_COLUMNS = tuple(
    field.name
    for field in fields(BatchSizeRow)
    if field.name not in ("placement", "failures", "seed", "choice", "distinct_within_seed")
)
"""Failures by kind are no single value; a condition has one seed, which comes last, and a choice
is in its name."""
CONDITION_COLUMNS = ("condition", "prompt", "kernels", *ROW_COLUMNS, "placement", "seed")
VARIANT_COLUMNS = (
    "prompt", "kernels", "rank", "count", "share", "is_reference", "first_divergence",
    "batch_sizes", "flip", "reference_gap", "variant_gap", "noise", "fingerprint", "text", "seeds",
)  # fmt: skip
BRANCHING_COLUMNS = (
    "prompt", "kernels", "position", "flip", "common_completions", "completions", "variants",
    "common_gap", "gap", "noise", "runner_up_won", "context", "common_piece", "piece", "seed",
)  # fmt: skip
MAY_BE_MISSING = ("exact_repeats_differ", "repeats_differ", "first_divergence")
"""Columns of whole numbers that may be missing."""
FLOATS = (
    *("observed_rows_mean", "tokens_per_second", "relative_cost", "share"),
    *("reference_gap", "variant_gap", "common_gap", "gap", "noise"),
)
TEXTS = (
    *("condition", "prompt", "kernels", "placement", "batch_sizes", "flip", "fingerprint", "text"),
    *("context", "common_piece", "piece", "runner_up_won", "seeds"),
)


def conditions_frame(analysis: Analysis) -> pd.DataFrame:
    """One row a condition: prompt by prompt, kernels by kernels, smallest batch first.

    =====================  =======  ================================================================
    column                 type     meaning
    =====================  =======  ================================================================
    condition              object   name of the condition, such as `p0/stock/b4`
    prompt                 object   the prompt
    kernels                object   kernels setting
    batch_size             int64    requests in flight together, as asked for
    asked                  int64    completions asked for
    completions            int64    completions that came back
    failed                 int64    requests that failed
    distinct               int64    distinct answers
    most_common            int64    completions with the most common answer
    differ_from_reference  int64    completions whose answer is not the reference
    observed_rows_max      int64    most requests in one forward pass; 0: not observed
    observed_rows_mean     float64  mean requests a forward pass; NaN: not observed
    tokens_per_second      float64  generated tokens a second, fillers included; NaN: not timed
    relative_cost          float64  time a token as a multiple of stock's; NaN: no stock beside it
    exact_repeats_differ   Int64    completions that differ in an exact repeat; NA: not run
    retries                int64    requests that were sent again
    repeats_differ         Int64    completions of repeated trials whose answer differs; NA: none
    placement              object   such as `endpoint 2`; empty if the grid has only one place
    seed                   int64    wanted sample: its seed, or its choice of several
    =====================  =======  ================================================================
    """
    return _frame(
        CONDITION_COLUMNS, (row for g in analysis.groups for row in _conditions(analysis, g))
    )


def variants_frame(analysis: Analysis) -> pd.DataFrame:
    """One row per (prompt, kernels, variant), most common first.

    ================  =======  =====================================================================
    column            type     meaning
    ================  =======  =====================================================================
    prompt            object   the prompt
    kernels           object   kernels setting
    rank              int64    1 for the most common answer
    count             int64    completions that gave it
    share             float64  the same as a fraction of 1
    is_reference      bool     whether the others (of a seed) are compared with it
    first_divergence  Int64    position at which it leaves the reference; NA for a reference
    batch_sizes       object   batch sizes under which it was seen, such as `4 16`
    flip              object   kind of the flip at which it leaves the reference
    reference_gap     float64  gap of the two best logits there on the reference's side, in nats
    variant_gap       float64  the same on its own side, in nats
    noise             float64  measured noise of such gaps, in nats; NaN: not measured
    fingerprint       object   tagged hash of the token ids, or of the text
    text              object   the answer
    seeds             object   seeds under which it was seen, such as `0 1`
    ================  =======  =====================================================================
    """
    return _frame(VARIANT_COLUMNS, (row for g in analysis.groups for row in _variants(g)))


def branchings_frame(analysis: Analysis) -> pd.DataFrame:
    """One row a branching of the prefix trees, by position; `flip` counts are of these rows.

    ==================  =======  ===================================================================
    column              type     meaning
    ==================  =======  ===================================================================
    prompt              object   the prompt
    kernels             object   kernels setting
    position            int64    completion token (or character) at which two branches diverge
    flip                object   kind of the flip
    common_completions  int64    completions that take the more common branch
    completions         int64    completions that take the other branch
    variants            int64    distinct answers that take the other branch
    common_gap          float64  gap of the two best logits in the more common branch, in nats
    gap                 float64  the same in the other branch, in nats
    noise               float64  measured noise of such gaps, in nats; NaN: not measured
    runner_up_won       object   whether the other branch took the second-best token; None: unknown
    context             object   text that both share just before
    common_piece        object   the next words of the more common branch
    piece               object   the next words of the other branch
    seed                int64    seed of the answers
    ==================  =======  ===================================================================
    """
    return _frame(BRANCHING_COLUMNS, (row for g in analysis.groups for row in _branchings(g)))


def analysis_html(analysis: Analysis) -> str:
    """The summary as a notebook shows it."""
    completions = sum(group.completions for group in analysis.groups)
    title = f"analysis of run {analysis.run.run_id}, {count(completions, 'completion')}"
    return table_html(title, summary_rows(analysis))


def _frame(columns: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    listed = list(rows)
    return pd.DataFrame(
        {
            name: pd.Series([row[index] for row in listed], dtype=_dtype(name))
            for index, name in enumerate(columns)
        }
    )


def _dtype(column: str) -> str:
    """Text stays Python's: other string types refuse the lone surrogates that answers may hold."""
    if column in TEXTS:
        return "object"
    if column in FLOATS:
        return "float64"
    return "Int64" if column in MAY_BE_MISSING else "bool" if column == "is_reference" else "int64"


def _conditions(analysis: Analysis, group: Group) -> Iterator[tuple[Any, ...]]:
    several = len(analysis.run.experiment.seeds) > 1  # then no request asks for several choices
    for row in group.by_condition:
        name = condition_id(
            group.prompt_index,
            group.kernels,
            row.batch_size,
            row.placement,
            row.seed if several else None,
            row.choice,
        )
        values = (getattr(row, column) for column in ROW_COLUMNS)
        yield (name, group.prompt, group.kernels, *values, row.placement, row.seed)


def _variants(group: Group) -> Iterator[tuple[Any, ...]]:
    flips: dict[tuple[str, int | None], Flip] = {
        (found.variant.fingerprint, found.position): found.flip for found in group.divergences
    }
    for line in group.variants:
        flip = flips.get((line.variant.fingerprint, line.first_divergence))
        yield (
            group.prompt,
            group.kernels,
            line.rank,
            line.count,
            line.share,
            line.is_reference,
            line.first_divergence,
            " ".join(map(str, line.batch_sizes)),
            None if flip is None else flip.kind,
            None if flip is None else flip.reference_gap,
            None if flip is None else flip.variant_gap,
            None if flip is None else flip.noise,
            line.variant.fingerprint,
            line.variant.text,
            " ".join(map(str, line.seeds)),
        )


def _branchings(group: Group) -> Iterator[tuple[Any, ...]]:
    for branching in group.branchings:
        flip = branching.flip
        yield (
            group.prompt,
            group.kernels,
            branching.position,
            flip.kind,
            branching.common_completions,
            branching.completions,
            branching.variants,
            flip.reference_gap,
            flip.variant_gap,
            flip.noise,
            flip.runner_up_won,
            branching.context,
            branching.common_piece,
            branching.piece,
            branching.seed,
        )
