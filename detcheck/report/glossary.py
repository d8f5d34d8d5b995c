"""The words of a report, each explained once."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "variant",
        "The completions of one prompt that are equal token for token; where a server gives no "
        "token ids, character for character. “Distinct” counts the variants.",
    ),
    (
        "reference",
        "The variant that the others are compared with: that of the smallest batch size, which is "
        "the request with the least company, else the most common one.",
    ),
    (
        "first divergence",
        "The token, counted from 0, at which a variant leaves the reference. An answer that stops "
        "early parts at its own length.",
    ),
    (
        "flip",
        "Why two answers part there. A tie: under one of the two loads the two best tokens have "
        "equal logits. A near tie: their gaps under both are within the numerical noise measured "
        "in the same run, so rounding decides. Confident: a gap is beyond that noise, which is "
        "not rounding but a bug. Gaps are in nats, the difference of the two log-probabilities.",
    ),
    (
        "kernels",
        "The code that multiplies matrices and computes attention. Stock kernels add numbers up "
        "in an order that depends on how many rows share the call, and floating-point sums depend "
        "on their order. Batch-invariant kernels keep one order whatever the load.",
    ),
    (
        "batch size and observed batch",
        "Requests in flight together as asked for, and those that really shared a forward pass. "
        "Only the second is evidence.",
    ),
    (
        "invariances",
        "What must not matter to a request's bits: repeat (nothing changes), batch size (how many "
        "rows share the call), position (which row it is), neighbours (what the others hold), "
        "padding, chunking (how its prefill is split) and prefill-decode (one prefill, or token by "
        "token with the cache).",
    ),
    (
        "coverage and bounds",
        "Good–Turing coverage estimates the share of future answers that will be one of those "
        "seen; Chao1 is a lower bound on how many variants there are. Where none differed, the "
        "exact binomial bound says how often one could still differ (95 %).",
    ),
)
"""(word, explanation) pairs, in reading order."""
