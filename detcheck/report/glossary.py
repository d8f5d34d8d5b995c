"""The words of a report, each explained once."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "variant",
        "The completions of one prompt that are equal token for token, or character for character "
        "if a server gives no token ids. “Distinct” counts the variants.",
    ),
    (
        "reference",
        "The variant that the others are compared with: the one of the smallest batch size, else "
        "the most common one.",
    ),
    (
        "first divergence",
        "The token, counted from 0, at which a variant leaves the reference. An answer that is "
        "the beginning of the other diverges at its own length.",
    ),
    (
        "flip",
        "A branching: completions that agreed so far go on in two ways. It is a tie if the two "
        "best tokens have equal logits under one of the two loads, and a near tie if their gaps "
        "under both loads are within the numerical noise measured in the same run: then rounding "
        "decides. It is confident if a gap is larger than that noise: this is not rounding but a "
        "bug. It is unknown if gaps or noise were not measured.",
    ),
    (
        "gap and nat",
        "The gap is the difference of the log-probabilities of the two best tokens. It is given "
        "in nats, the unit of the natural logarithm: 0.1 nats means that the best token is 1.1 "
        "times as probable as the second, 1 nat that it is 2.7 times as probable. Above "
        "temperature 0 sampling perturbs the scores, and gaps are those of perturbed scores.",
    ),
    (
        "kernels",
        "The code that multiplies matrices and computes attention. Stock kernels add numbers in "
        "an order that depends on how many rows share the call, and a floating-point sum depends "
        "on its order. Batch-invariant kernels keep one order whatever the load. They are the "
        "cure whose effect and cost this report shows beside stock, the control.",
    ),
    (
        "batch size and observed batch",
        "Requests in flight together as asked for, and requests that really shared a forward "
        "pass. Only the second is evidence.",
    ),
    (
        "seed",
        "It asks for one sample of the model above temperature 0. Different seeds may give "
        "different answers, which you asked for. A second answer to one seed comes from the "
        "system. References and divergences are within a seed.",
    ),
    (
        "traffic",
        "What else is in the batches. Alone: copies of the same prompt. Mixed: half of them are "
        "other prompts.",
    ),
    (
        "agreement",
        "The chance that two completions are equal. 100 % means one answer.",
    ),
    (
        "time per token",
        "Time per generated token as a multiple of that of stock kernels under the same loads. In "
        "parentheses: the lowest and the highest of the batch sizes.",
    ),
    (
        "invariances",
        "The bits of a request must not change with: repeat (nothing else changes), batch size "
        "(rows in the call), position (its row), neighbours (the content of other rows), layout "
        "(the place of the rows in memory), padding, chunking (the split of its prefill), "
        "prefill-decode (one prefill, or token by token with the cache) and prefix-cache (its "
        "prefix computed afresh, or taken from the cache of an earlier request).",
    ),
    (
        "coverage and bounds",
        "Good–Turing coverage estimates which share of future answers will be one of those seen. "
        "Chao1 is a lower bound on how many variants there are. If no completion differed, the "
        "exact binomial bound says how often one could still differ (95 %).",
    ),
)
"""(word, explanation) pairs, in reading order."""
