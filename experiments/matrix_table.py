"""The table of `model_matrix.py`: a row for each architecture, and the meaning of the columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from matrix_relations import HELD, REFUSED, VARIANT, Relation

from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

KERNELS = (STOCK, BATCH_INVARIANT)
DTYPE_NAMES = ("float32", "bfloat16")
UNBUILT, FAILED = "not built", "failed"
HELD_UNPADDED = "held, one length"
RELATIONS = ("chunking", "prefill-decode", "continuous", "prefix-cache")


@dataclass(slots=True)
class Row:
    """One architecture. Counts of rows are over both dtypes and all batches."""

    architecture: str
    outcome: str = UNBUILT
    level: str | None = None
    reason: str | None = None
    """Why it is refused or was not built; or the dtype in which its own code fails."""
    rows: int = 0
    """Rows that were compared with each kernels setting."""
    differ: dict[str, int] = field(default_factory=dict)
    """Rows that differ, by kernels."""
    relations: dict[str, Relation] = field(default_factory=dict)
    """Its result in each of `RELATIONS` that is claimed and could be tried, by name."""
    cost: dict[str, float] = field(default_factory=dict)
    """Time with batch-invariant kernels as a multiple of stock's, by dtype."""
    elapsed_s: float = 0.0


NOTES = (
    "*Stock*, *batch-invariant*: the rows change nothing (`repeat`) or their `batch-size`, "
    "`position`, `neighbours` and, unless of one length, `padding`. *Level* is what `detcheck "
    "coverage` finds in one short request. `layout` is a relation of single ops, measured by "
    "`detcheck ops`: a model makes its tensors itself.",
    "",
    "The next four columns compare bits in float32 and bfloat16, with stock kernels as the "
    "control. `chunking`: `generate` with its prompt in chunks of 4 tokens. `prefill-decode`: "
    "decoded tokens against one forward pass. *Continuous*: transformers' continuous batching, "
    "four requests alone and beside each other in two ways; in the second some arrive later. "
    "`prefix-cache`: requests whose first blocks are in its cache, alone and in company, against "
    "the same computed afresh. All but *continuous* are tried only if the level is fully-invariant "
    "(–: not tried). *Engine cannot*: transformers itself cannot, with stock kernels either; the "
    "reasons are below.",
    "",
    "*Cost*: the time of one forward pass and one `generate` over four requests with "
    "batch-invariant kernels, as a multiple of stock's, in float32 / bfloat16; the median of "
    "paired rounds. These models are tiny: Python's work for each call takes nearly all the time, "
    "and hardly any arithmetic is in it. Single figures repeat only roughly: beside other work, "
    "two runs gave 1.82 and 1.33 for one architecture. `docs/benchmarks.md` has the cost of models "
    "of middle size of each kind.",
)


def table(rows: Sequence[Row]) -> str:
    """The results as Markdown."""
    counts = Counter(row.outcome for row in rows)
    built = len(rows) - counts[UNBUILT]
    dead = [row.architecture for row in rows if row.rows and not row.differ["stock"]]
    dead_control = f" (no row differs for {', '.join(dead)})" if dead else ""
    headings = ("architecture", "outcome", "level", *KERNELS, *RELATIONS, "cost", "reason")
    lines = [
        f"{len(rows)} architectures, as tiny random models; {built} could be built by rules. "
        f"Of these {counts[HELD]} are held, {counts[HELD_UNPADDED]} more are held for requests of "
        f"one length; refused with a sentence: {counts[REFUSED]}; covered but not held: "
        f"{counts[VARIANT] + counts[FAILED]}. Rows in batches, padded "
        "unless of one length, against the same rows alone, forward and generated, float32 and "
        "bfloat16. "
        "*Stock*: rows that differ with stock kernels, the control"
        f"{dead_control}.",
        "",
        *NOTES,
        "",
        *(counted(name, rows) for name in RELATIONS),
        costs_of_all(rows),
        "",
        "| " + " | ".join(headings) + " |",
        "|---" * len(headings) + "|",
    ]
    for row in rows:
        differ = [f"{row.differ[name]} of {row.rows}" if row.differ else "–" for name in KERNELS]
        reason = (row.reason or "").split(", which the batch-invariant")[0].replace("|", "\\|")
        told = [*(cell(row.relations.get(name)) for name in RELATIONS), cost_of(row)]
        cells = (row.architecture, row.outcome, row.level or "–", *differ, *told, reason or "–")
        lines.append(f"| {' | '.join(cells)} |")
    for name in RELATIONS:
        why = reasons((row.architecture, row.relations.get(name)) for row in rows)
        lines += ["", f"Why `{name}` has no figure:", "", *why] if why else []
    return "\n".join(lines) + "\n"


def counted(name: str, rows: Sequence[Row]) -> str:
    """One line: the results of a relation over all architectures that were tried."""
    tried = [row.relations[name] for row in rows if name in row.relations]
    outcomes = Counter(relation.outcome for relation in tried)
    parts = [f"{number} {outcome}" for outcome, number in outcomes.most_common()]
    alive = sum(relation.differ[STOCK] > 0 for relation in tried if relation.differ)
    return (
        f"- `{name}`: {', '.join(parts) or 'not tried'}; stock kernels differ in {alive} of the "
        f"{sum(bool(relation.differ) for relation in tried)} that ran."
    )


def costs_of_all(rows: Sequence[Row]) -> str:
    """One line: the median cost in each dtype, with the lowest and highest."""
    parts = []
    for name in DTYPE_NAMES:
        each = [row.cost[name] for row in rows if name in row.cost]
        if each:
            spread = f"from {min(each):.2f} to {max(each):.2f} in {len(each)} architectures"
            parts.append(f"{name} {median(each):.2f}, {spread}")
    return f"- Cost, the median: {'; '.join(parts) or 'not measured'}."


def cost_of(row: Row) -> str:
    """One cell: the cost in each dtype; a dash if it is not known."""
    if not row.cost:
        return "–"
    return " / ".join(f"{row.cost[name]:.2f}" if name in row.cost else "–" for name in DTYPE_NAMES)


def cell(relation: Relation | None) -> str:
    """One cell of the table; None is a relation that is not claimed, or was not reached."""
    if relation is None:
        return "–"
    if relation.outcome not in (HELD, VARIANT):
        return relation.outcome
    return f"{relation.outcome} (stock {relation.differ[STOCK]} of {relation.answers})"


def reasons(each: Iterable[tuple[str, Relation | None]]) -> list[str]:
    """Lines that say why architectures have no figure, those with one reason together.

    `each` is an architecture with what it did.
    """
    grouped: dict[tuple[str, str], list[str]] = {}
    for architecture, relation in each:
        if relation is not None and relation.reason is not None:
            key = (relation.outcome, short(relation.reason))
            grouped.setdefault(key, []).append(architecture)
    return [
        f"- {outcome}: {reason} ({', '.join(names)})."
        for (outcome, reason), names in sorted(grouped.items())
    ]


def short(reason: str) -> str:
    """A sentence without its remedy, without the report of transformers and the model's name."""
    told = reason.partition("under the engine continuous: ")[2] or reason
    told = told.split(": leave ")[0].split(": use ")[0].split("; use ")[0]
    told = re.sub(r"^\S+ in (float32|bfloat16) ", "it ", told)
    told = re.sub(r" \((the scores|transformers reports|it gave) .*\)$", "", told)
    return told.replace("|", "\\|").rstrip(".")
