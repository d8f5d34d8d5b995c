"""The verdict: fail on a broken limit, pass only with evidence; each reason has its twin."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from detcheck.analysis.mismatch.measures import measure
from detcheck.analysis.mismatch.results import WHOLE, MismatchReport, MismatchRow, MissingLink
from detcheck.errors import ExitCode, UsageError
from detcheck.mismatch.options import MismatchLimits, TrainerOptions
from detcheck.mismatch.verdict import judge_mismatch

BITWISE = MismatchLimits(bitwise=True)


def row(kernels: str, gap: float, tokens: int = 300) -> MismatchRow:
    sampler = [-np.ones(tokens // 2), -np.ones(tokens - tokens // 2)]
    found = measure(sampler, [each + gap for each in sampler])
    return MismatchRow.of(found, kernels, WHOLE, "padded", "bfloat16")


def report(*rows: MismatchRow, **fields: Any) -> MismatchReport:
    return MismatchReport(rows=rows, headline="", **fields)


GOOD = report(row("stock", 0.1), row("fully-invariant", 0.0))


def test_equal_bits_pass_beside_a_control_that_moves() -> None:
    verdict = judge_mismatch(GOOD, BITWISE)
    assert (verdict.value, verdict.exit_code) == ("pass", ExitCode.OK)
    assert verdict.kernels == ("fully-invariant",)


def test_one_other_bit_fails() -> None:
    verdict = judge_mismatch(report(row("fully-invariant", 1e-6)), BITWISE)
    assert verdict.exit_code == ExitCode.FAILED
    assert "300 of 300 tokens differ" in verdict.reasons[0]


@pytest.mark.parametrize(("limit", "code"), [(0.006, ExitCode.OK), (0.004, ExitCode.FAILED)])
def test_k3_is_held_to_its_limit(limit: float, code: ExitCode) -> None:
    """K3 of r = 0.1 is 0.00517."""
    found = report(row("stock", 0.1))
    assert judge_mismatch(found, MismatchLimits(max_k3=limit)).exit_code == code


LACKING: dict[str, tuple[MismatchReport, str]] = {
    "too few tokens": (report(row("fully-invariant", 0.0, 200)), "200 tokens were compared"),
    "rounded": (
        msgspec.structs.replace(GOOD, rounding="the log-probabilities are rounded to 8 bits"),
        "rounded to 8 bits",
    ),
    "unproven": (
        msgspec.structs.replace(GOOD, unproven={"fully-invariant": "ops ran outside"}),
        "ops ran outside",
    ),
    "missing": (
        msgspec.structs.replace(
            GOOD,
            missing=(
                MissingLink(kernels="fully-invariant", link="decode-prefill", reason="no cache"),
            ),
        ),
        "decode-prefill could not be recomputed: no cache",
    ),
    "dead control": (
        report(row("stock", 0.0), row("fully-invariant", 0.0)),
        "stock kernels show no gap either",
    ),
    "nothing": (report(), "0 tokens were compared"),
}


@pytest.mark.parametrize("name", LACKING)
def test_without_evidence_it_is_inconclusive(name: str) -> None:
    found, reason = LACKING[name]
    verdict = judge_mismatch(found, BITWISE)
    assert (verdict.value, verdict.exit_code) == ("inconclusive", ExitCode.INCONCLUSIVE)
    assert any(reason in each for each in verdict.reasons)


def test_a_broken_limit_outranks_lacking_evidence() -> None:
    assert judge_mismatch(report(row("stock", 0.1, 20)), BITWISE).value == "fail"


@pytest.mark.parametrize(("gap", "value"), [(0.0009, "inconclusive"), (0.0011, "fail")])
def test_a_gap_that_rounding_alone_can_make_is_no_broken_limit(gap: float, value: str) -> None:
    rounded = report(row("stock", gap), rounding="rounded to 3 decimals", rounding_unit=0.001)
    assert judge_mismatch(rounded, BITWISE).value == value
    assert judge_mismatch(report(row("stock", gap)), BITWISE).value == "fail"


def test_other_kernels_are_not_judged() -> None:
    found = msgspec.structs.replace(GOOD, unproven={"batch-invariant": "no"})
    assert judge_mismatch(found, BITWISE).value == "pass"


@pytest.mark.parametrize(
    ("names", "judged"),
    [
        (("stock", "batch-invariant", "fully-invariant"), ("fully-invariant",)),
        (("stock", "batch-invariant"), ("batch-invariant",)),
        (("stock",), ("stock",)),
    ],
)
def test_the_strongest_claim_is_judged(names: tuple[str, ...], judged: tuple[str, ...]) -> None:
    found = report(*(row(name, 0.1) for name in names))
    assert judge_mismatch(found, BITWISE).kernels == judged


def test_a_judgement_needs_a_limit() -> None:
    with pytest.raises(UsageError, match="`max_k3`, `bitwise` or both"):
        judge_mismatch(GOOD, MismatchLimits())


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (MismatchLimits, {"max_k3": -1.0}, "`max_k3` must be 0 or more"),
        (MismatchLimits, {"min_tokens": 0}, "`min_tokens` must be at least 1"),
        (TrainerOptions, {"trainer_layout": ("ragged",)}, "Unknown trainer layout 'ragged'"),
        (TrainerOptions, {"trainer_layout": ()}, "Give each trainer layout once"),
        (TrainerOptions, {"trainer_dtype": ("int8",)}, "Unknown trainer dtype 'int8'"),
        (TrainerOptions, {"trainer_kernels": "fast"}, "Unknown kernels 'fast'"),
        (TrainerOptions, {"trainer_kernels": "as-served"}, "are those of a server"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    kind: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**fields)
