"""The statistics of parsed answers as plain data, for `detcheck run --json` and other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detcheck.analysis.answers import AnsweredItem, AnswerStability

if TYPE_CHECKING:
    import pandas as pd

ANSWER_COLUMNS = (
    *("kernels", "item", "prompt", "expected", "answer", "right", "completions"),
    *("batch_sizes", "flips", "example"),
)


def answer_rows(stabilities: Sequence[AnswerStability]) -> list[dict[str, Any]]:
    """One plain row for each kernels setting. Shares and scores lie between 0 and 1.

    Keys: kernels, items, completions, unparsed, unparsed_examples, raw_agreement (TARr@N),
    parsed_agreement (TARa@N), flips, flip_share, flip_interval (exact, 95 %), accuracy (by batch
    size), best, worst, spread, accuracy_std (Std@Acc), standard_error (binomial, of the set),
    div_index (Div_Index), top1_std (Avg_Std@top1_prob), sentence, and flipped: the items whose
    answer changed, each with id, prompt, expected and answers (answer, completions, batch_sizes,
    example). None stands for an unknown figure.
    """
    return [_row(stability) for stability in stabilities]


def answers_frame(stabilities: Sequence[AnswerStability]) -> pd.DataFrame:
    """One row per (kernels, item, parsed answer), most common answer first.

    ============  ======  =====================================================================
    column        type    meaning
    ============  ======  =====================================================================
    kernels       object  kernels setting
    item          object  id of the item, else `prompt 3`
    prompt        object  the prompt
    expected      object  the right answer; None if it is not known
    answer        object  the parsed answer; None if the parser found none
    right         object  whether it is the right one; None if that is not known
    completions   int64   completions that gave it
    batch_sizes   object  batch sizes under which it was seen, such as `4 16`
    flips         bool    whether the item has more than one answer to a seed
    example       object  text of a completion that gave it
    ============  ======  =====================================================================
    """
    import pandas as pd

    rows = [
        {
            "kernels": stability.kernels,
            "item": item.name,
            "prompt": item.prompt,
            "expected": item.expected,
            "answer": count.answer,
            "right": None if item.expected is None else count.answer == item.expected,
            "completions": count.completions,
            "batch_sizes": " ".join(map(str, count.batch_sizes)),
            "flips": item.flips,
            "example": count.example,
        }
        for stability in stabilities
        for item in stability.items
        for count in item.answers
    ]
    numbers = {"completions": "int64", "flips": "bool"}
    return pd.DataFrame(
        {
            name: pd.Series([r[name] for r in rows], dtype=numbers.get(name, "object"))
            for name in ANSWER_COLUMNS
        }
    )


def _row(stability: AnswerStability) -> dict[str, Any]:
    return {
        "kernels": stability.kernels,
        "items": len(stability.items),
        "completions": stability.completions,
        "unparsed": stability.unparsed,
        "unparsed_examples": list(stability.unparsed_examples),
        "raw_agreement": stability.raw_agreement,
        "parsed_agreement": stability.parsed_agreement,
        "flips": len(stability.flipped),
        "flip_share": stability.flip_share,
        "flip_interval": stability.flip_interval,
        "accuracy": {str(load.batch_size): load.accuracy for load in stability.by_load},
        "best": stability.best,
        "worst": stability.worst,
        "spread": stability.spread,
        "accuracy_std": stability.accuracy_std,
        "standard_error": stability.standard_error,
        "div_index": stability.div_index,
        "top1_std": stability.top1_std,
        "sentence": stability.sentence,
        "flipped": [_flipped(item) for item in stability.flipped],
    }


def _flipped(item: AnsweredItem) -> dict[str, Any]:
    return {
        "id": item.id,
        "prompt": item.prompt,
        "expected": item.expected,
        "answers": [
            {
                "answer": count.answer,
                "completions": count.completions,
                "batch_sizes": list(count.batch_sizes),
                "example": count.example,
            }
            for count in item.answers
        ],
    }
