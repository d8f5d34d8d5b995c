"""How far the load moves the probability of the best token: Avg_Std@top1_prob.

Of each load the first completion counts. Up to the first position at which two of them differ,
that position included, all were computed after the same words, so their probabilities ought to be
equal. After Yuan et al., "Give Me FP32 or Give Me Death?" (2025).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detcheck.completion import first_divergence
from detcheck.rundir import Run

Tokens = Sequence[int | str]


def top1_stds(run: Run) -> Mapping[tuple[int, str], float]:
    """The statistic of each item, by (prompt index, kernels), where two loads or more are known.

    Empty above temperature 0: there the chosen token need not be the best one.
    """
    if run.experiment.temperature > 0:
        return {}
    table = run.completions
    responses: defaultdict[tuple[int, str], list[tuple[Tokens, npt.NDArray[np.float64]]]]
    responses = defaultdict(list)
    for row, logprobs in table.top_logprobs.items():
        record = run.conditions[int(table.condition[row])]
        tokens = run.variants[int(table.variant[row])].token_keys()
        probabilities = np.exp(logprobs.astype(np.float64))
        responses[record.prompt_index, record.kernels].append((tokens, probabilities))
    found = {key: top1_std(of_item) for key, of_item in responses.items()}
    return {key: value for key, value in found.items() if value is not None}


def top1_std(responses: Sequence[tuple[Tokens, npt.NDArray[np.float64]]]) -> float | None:
    """Standard deviation (n - 1) over responses, averaged over the positions up to Div_Index.

    A response is its tokens and the probability of the best token at each position. None if there
    are fewer than two responses, or they have no position in common.
    """
    if len(responses) < 2:
        return None
    first = responses[0][0]
    partings = (first_divergence(first, tokens) for tokens, _ in responses[1:])
    stop = min((index + 1 for index in partings if index is not None), default=len(first))
    stop = min(stop, *(len(probabilities) for _, probabilities in responses))
    if stop == 0:
        return None
    columns = np.stack([probabilities[:stop] for _, probabilities in responses])
    known = columns[:, np.isfinite(columns).all(axis=0)]
    # Less the first response, so that equal probabilities have a deviation of exactly 0.
    return float((known - known[0]).std(axis=0, ddof=1).mean()) if known.shape[1] else None
