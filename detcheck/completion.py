"""The answer to one request, and the fingerprint that decides whether two answers are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcheck.evidence import MOST_DECIMALS, ObservedBatch, Precision

ROUNDING_ERROR = 1e-6
"""Difference of two numbers with few decimals from one with as many, in units of the last."""
LARGEST_LOGPROB = 1000.0
"""Larger ones stand for `impossible`, such as -9999."""


def fingerprint_token_ids(token_ids: Sequence[int]) -> str:
    """Tagged SHA-256 of token ids as little-endian int32: `sha256:<hex>`."""
    data = np.asarray(token_ids, dtype="<i4").tobytes()
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fingerprint_text(text: str) -> str:
    """Tagged SHA-256 of UTF-8 text, for servers that give no token ids: `sha256-text:<hex>`."""
    data = text.encode("utf-8", "surrogatepass")
    return "sha256-text:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class TopTwo:
    """The two best tokens at each position of a completion, as the logits ranked them."""

    runner_up_token_ids: tuple[int, ...] | None
    """Second-best token at each position; never the chosen one, not even in a tie. None if a
    server gives text instead of ids."""
    gaps: tuple[float, ...]
    """Best minus second-best logit (= difference of log-probabilities, in nats), >= 0. Above
    temperature 0, an engine in process gives the gap of the scores that the seed has perturbed."""
    logprobs: tuple[float, ...]
    """Log-probability of the chosen token by the model's own logits, in nats."""
    runner_up_texts: tuple[str, ...] | None = None
    """Text of the second-best token, if a server gives text instead of ids."""


def precision_of(top_two: TopTwo) -> Precision:
    """The precision of the log-probabilities of one completion, as they were given.

    Decimals and digits are those of both best tokens, within rounding errors of the gap. Bits are
    of the best token's alone, since a difference of two coarse numbers is finer than they are.
    """
    best = np.asarray(top_two.logprobs, dtype=np.float64)
    gaps = np.asarray(top_two.gaps, dtype=np.float64)
    seconds = best - gaps if len(gaps) == len(best) else gaps
    numbers = _usable(np.concatenate([best, seconds]))
    decimals = (d for d in range(MOST_DECIMALS + 1) if _are_whole(numbers * 10.0**d))
    mantissas = (np.frexp(_usable(best))[0] * 2.0**53).astype(np.int64)
    lowest = np.log2((mantissas & -mantissas).astype(np.float64)).astype(np.int64)
    return Precision(
        decimals=next(decimals, MOST_DECIMALS + 1),
        digits=max(map(_digits, set(numbers.tolist())), default=0),
        bits=int((53 - lowest).max(initial=0)),
    )


def _usable(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Those that are neither 0 nor infinite nor clamped to a huge number."""
    return np.extract((numbers != 0) & (np.abs(numbers) < LARGEST_LOGPROB), numbers)


def _digits(number: float) -> int:
    """Significant decimal digits of a number other than 0, 12 at the most."""
    mantissa = f"{abs(number):.11e}".partition("e")[0]  # such as 1.25000000000
    return len(mantissa.rstrip("0").replace(".", ""))


def _are_whole(numbers: npt.NDArray[np.float64]) -> bool:
    return bool((np.abs(numbers - np.rint(numbers)) < ROUNDING_ERROR).all())


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to one request, as an engine returns it."""

    text: str
    finish_reason: str
    """`stop` (end-of-sequence), `length` (token limit), `error`, or a server's own word; `unknown`
    if a server ended the answer in order and gave no reason."""
    token_ids: tuple[int, ...] | None = None
    """Completion token ids, end-of-sequence included; None if a server gives none."""
    token_ends: tuple[int, ...] | None = None
    """For each token, the length of `text` after it. As long as `token_ids`, and may be given
    without them."""
    top_two: TopTwo | None = None
    observed_batch: ObservedBatch | None = None
    error: str | None = None
    """Why the request failed; None if it did not fail."""
    failure: str | None = None
    """Kind of that failure, such as `timeout` or `http 5xx`; None if the engine tells no kinds."""
    unseen_tokens: int = 0
    """Least tokens that the server counted and did not show, such as hidden reasoning."""

    @property
    def failed(self) -> bool:
        """True if the request got no answer."""
        return self.error is not None

    @property
    def fingerprint(self) -> str:
        """Identity of the answer: of the token ids, or of the text if there are none."""
        if self.token_ids is None:
            return fingerprint_text(self.text)
        return fingerprint_token_ids(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Number of completion tokens; 0 if the server sent text without token boundaries."""
        return len(self.token_ids or self.token_ends or ())

    @property
    def logprob_digest(self) -> str | None:
        """First 16 hex digits of the SHA-256 over gaps and log-probabilities, bit for bit."""
        if self.top_two is None:
            return None
        data = np.asarray((self.top_two.gaps, self.top_two.logprobs), dtype="<f8").tobytes()
        return hashlib.sha256(data).hexdigest()[:16]


def first_divergence(a: Sequence[int | str], b: Sequence[int | str]) -> int | None:
    """0-based index of the first difference; a strict prefix diverges at its own length.

    Returns None if they are equal.
    """
    shared = min(len(a), len(b))
    for index in range(shared):
        if a[index] != b[index]:
            return index
    return None if len(a) == len(b) else shared
