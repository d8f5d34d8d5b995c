from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.completion import (
    Completion,
    TopTwo,
    fingerprint_text,
    fingerprint_token_ids,
    first_divergence,
    precision_of,
)

SEQUENCES = st.lists(st.integers(0, 2), max_size=10)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_the_fingerprint_is_that_of_little_endian_int32(token_ids: list[int]) -> None:
    data = b"".join(struct.pack("<i", token_id) for token_id in token_ids)
    assert fingerprint_token_ids(token_ids) == "sha256:" + hashlib.sha256(data).hexdigest()


def test_fingerprints_stay_what_they_were() -> None:
    """A changed scheme would part old runs from new ones: it needs another tag."""
    assert fingerprint_token_ids([1, 2, 3]).startswith("sha256:4636993d3e1da4e9d6b8f87b79e8f7c6")
    assert fingerprint_text("a").startswith("sha256-text:ca978112ca1bbdcafac231b39a23dc4d")


def test_text_with_a_lone_surrogate_has_a_fingerprint() -> None:
    assert fingerprint_text("\ud800") != fingerprint_text("\ud801")


@given(SEQUENCES, SEQUENCES)
def test_first_divergence_is_where_prefixes_stop_being_equal(a: list[int], b: list[int]) -> None:
    position = first_divergence(a, b)
    if position is None:
        assert a == b
    else:
        assert a[:position] == b[:position]
        assert a[position : position + 1] != b[position : position + 1]


@given(SEQUENCES, SEQUENCES)
def test_first_divergence_does_not_care_which_is_first(a: list[int], b: list[int]) -> None:
    assert first_divergence(a, b) == first_divergence(b, a)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([], [], None), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ("abc", "abd", 2), ("ab", "ab", None)],
)
def test_first_divergence(a: list[int] | str, b: list[int] | str, expected: int | None) -> None:
    assert first_divergence(a, b) == expected


def completion(gaps: tuple[float, ...] | None = None, **fields: object) -> Completion:
    top_two = None if gaps is None else TopTwo((5,) * len(gaps), gaps, (-0.5,) * len(gaps))
    return Completion("text", "stop", top_two=top_two, **fields)  # type: ignore[arg-type]


def test_the_answer_is_its_tokens_where_there_are_any() -> None:
    assert completion(token_ids=(1, 2)).fingerprint == fingerprint_token_ids([1, 2])
    assert completion(token_ids=()).fingerprint == fingerprint_token_ids([])
    assert completion().fingerprint == fingerprint_text("text")
    assert (completion(token_ids=(1, 2)).num_tokens, completion().num_tokens) == (2, 0)


def test_the_digest_sees_a_single_bit() -> None:
    digest = completion((0.1, 0.2)).logprob_digest
    assert digest is not None
    assert len(digest) == 16
    assert completion((0.1, 0.2)).logprob_digest == digest
    assert completion((0.1, 0.2 + 2**-54)).logprob_digest != digest
    assert completion().logprob_digest is None


def test_a_completion_failed_where_it_has_an_error() -> None:
    assert completion(error="gone").failed
    assert not completion().failed


LOGPROBS = [math.log(share / 997) for share in range(7, 990, 41)]


def top_two(logprobs: list[float]) -> TopTwo:
    """Every second number is the runner-up of the one before it."""
    best, second = logprobs[::2], logprobs[1::2]
    gaps = tuple(one - other for one, other in zip(best, second, strict=True))
    return TopTwo(None, gaps, tuple(best))


@pytest.mark.parametrize("decimals", range(7))
def test_rounded_decimals_are_found(decimals: int) -> None:
    rounded = top_two([round(one, decimals) for one in LOGPROBS])
    word = "decimal" if decimals == 1 else "decimals"
    assert precision_of(rounded).rounding == f"to {decimals} {word}"


@pytest.mark.parametrize(("digits", "words"), [(3, "to 3 digits"), (5, "to 5 digits")])
def test_rounded_digits_are_found(digits: int, words: str) -> None:
    small = [one * 1e-6 for one in LOGPROBS]
    assert precision_of(top_two([float(f"{one:.{digits}g}") for one in small])).rounding == words


def bfloat16(number: float) -> float:
    bits = np.array([number], np.float32).view(np.uint32) & 0xFFFF0000
    return float(bits.astype(np.uint32).view(np.float32)[0])


@pytest.mark.parametrize(
    ("rounded", "words"),
    [
        (bfloat16, "to 8 bits"),
        (lambda one: float(np.float16(one)), "to 11 bits"),
        (lambda one: 0.0, "to 0"),
        (lambda one: float(np.float32(one)), ""),
        (lambda one: float(str(np.float32(one))), ""),
        (lambda one: one, ""),
    ],
)
def test_rounded_bits_are_found_and_float32_is_not_rounded(rounded: Any, words: str) -> None:
    assert precision_of(top_two([rounded(one) for one in LOGPROBS])).rounding == words


def test_the_finest_number_counts_and_clamped_ones_do_not() -> None:
    fine, coarse = top_two(LOGPROBS), top_two([-0.25, -1.5])
    assert precision_of(coarse).joined(precision_of(fine)).rounding == ""
    clamped = TopTwo(None, (math.nan, 1e300, 9998.75), (-0.25, -1e300, -9999.0))
    assert precision_of(clamped).rounding == "to 2 decimals"
