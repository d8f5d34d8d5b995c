"""A loaded run as pandas tables, and as a table in a notebook. pandas is imported when called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from detcheck.text import count, one_line

if TYPE_CHECKING:
    import pandas as pd

    from detcheck.rundir.records import Run

CELL_LIMIT = 200
"""Characters of a cell that a notebook shows."""


def completions_frame(run: Run) -> pd.DataFrame:
    """One row a request, in the order in which they were recorded.

    ==================  ===========  ==============================================================
    column              type         meaning
    ==================  ===========  ==============================================================
    condition           category     name of the condition, such as `p0/stock/b4`
    prompt_index        int32        0-based index of the prompt
    kernels             category     kernels setting
    batch_size          int32        requests in flight together, as asked for
    placement           category     such as `endpoint 2`; empty if the grid has only one place
    trial               int32        0-based number of the trial within its condition
    request             int32        0-based position of the request within its trial
    variant             int32        row of `variants_frame` that was answered; -1: request failed
    rows_max            int32        most requests in one of its forward passes; 0: not observed
    rows_mean           float32      mean requests a forward pass; NaN: not observed
    query_tokens_max    int32        most query tokens in one of its forward passes
    noise               float32      largest change of the gap between the two best logits before
                                     its first divergence, in nats; NaN: not measured
    logprob_digest      int32        equal numbers: log-probabilities equal bit for bit; -1: none
    ==================  ===========  ==============================================================
    """
    import pandas as pd

    table = run.completions
    records = run.conditions

    def of_condition(name: str) -> Any:
        return np.array([getattr(record, name) for record in records])[table.condition]

    def category(name: str) -> Any:
        names = pd.Categorical([getattr(record, name) for record in records])
        return names.take(table.condition)

    return pd.DataFrame(
        {
            "condition": category("condition_id"),
            "prompt_index": of_condition("prompt_index").astype(np.int32),
            "kernels": category("kernels"),
            "batch_size": of_condition("batch_size").astype(np.int32),
            "placement": category("placement"),
            "trial": table.trial,
            "request": table.request,
            "variant": table.variant,
            "rows_max": table.rows_max,
            "rows_mean": np.where(table.rows_max > 0, table.rows_mean, np.float32(np.nan)),
            "query_tokens_max": table.query_tokens_max,
            "noise": table.noise,
            "logprob_digest": table.digest,
        }
    )


def variants_frame(run: Run) -> pd.DataFrame:
    """One row a distinct answer to a prompt, in the order in which they were first seen.

    ============  ======  ==========================================================================
    column        type    meaning
    ============  ======  ==========================================================================
    prompt_index  int32   0-based index of the prompt
    prompt        object  the prompt
    fingerprint   object  tagged hash of the token ids, or of the text if a server gave no ids
    completions   int64   completions that gave it, whatever the kernels
    num_tokens    Int32   completion tokens, end-of-sequence included; NA: not known
    text          object  the answer
    ============  ======  ==========================================================================
    """
    import pandas as pd

    answered = run.completions.variant[run.completions.variant >= 0]
    ends = [variant.token_ends for variant in run.variants]
    prompts = [variant.prompt_index for variant in run.variants]

    def texts(values: Iterable[str]) -> Any:
        # Other string types refuse the lone surrogates that answers may hold.
        return pd.Series(list(values), dtype=object)

    return pd.DataFrame(
        {
            "prompt_index": np.array(prompts, dtype=np.int32),
            "prompt": texts(run.experiment.prompts[index] for index in prompts),
            "fingerprint": texts(variant.fingerprint for variant in run.variants),
            "completions": np.bincount(answered, minlength=len(run.variants)),
            "num_tokens": pd.array([pd.NA if e is None else len(e) for e in ends], dtype="Int32"),
            "text": texts(variant.text for variant in run.variants),
        }
    )


def run_html(run: Run) -> str:
    """A run as a notebook shows it: its setting, and its summary (or conditions, before that)."""
    state = f"finished {run.finished}" if run.finished is not None else "not finished"
    title = f"run {run.run_id}, {count(len(run.completions), 'completion')}, {state}"
    rows = run.summary or [
        {
            "condition": record.condition_id,
            "status": record.status,
            "asked": record.asked,
            "completed": record.completed,
            "failed": record.failed,
        }
        for record in run.conditions
    ]
    return table_html(title, rows)


def table_html(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """An HTML table with the keys of the first row as its head; words are escaped, and cut."""
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0]) if rows else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return (
        f"<p>{escape(one_line(title))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):  # counts by kind
        value = ", ".join(f"{number:,} {name}" for name, number in value.items() if number)
    return escape(one_line(str(value), CELL_LIMIT))
