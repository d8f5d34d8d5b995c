"""The verdict on a measurement of sampler against trainer: pass, fail or inconclusive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE, Finding
from detcheck.analysis.mismatch.results import WHOLE, MismatchReport, MismatchRow
from detcheck.errors import ExitCode, UsageError
from detcheck.kernels.settings import PREFILL, STOCK, KernelSettings
from detcheck.mismatch.options import MismatchLimits
from detcheck.text import count, verb

PASS = "pass"
_ORDER = (FAIL, INCONCLUSIVE, NOTE)
_EXIT_CODES = {
    PASS: ExitCode.OK,
    FAIL: ExitCode.FAILED,
    INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True)
class MismatchVerdict:
    """The conclusion and its reasons, worst first."""

    value: str
    """`pass`, `fail` or `inconclusive`."""
    findings: tuple[Finding, ...]
    kernels: tuple[str, ...]
    """Kernels settings that were judged."""

    @property
    def exit_code(self) -> ExitCode:
        """0 pass, 1 fail, 3 inconclusive."""
        return _EXIT_CODES[self.value]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentence of each finding."""
        return tuple(finding.sentence for finding in self.findings)


def judge_mismatch(report: MismatchReport, limits: MismatchLimits) -> MismatchVerdict:
    """Judge every row of the whole gap under the kernels of `judged_kernels`.

    Raises UsageError if `limits` holds no limit.
    """
    if not limits.any:
        raise UsageError("There is nothing to judge by: give `max_k3`, `bitwise` or both.")
    kernels = judged_kernels(report)
    found = [*_broken(report, limits, kernels), *_lacking(report, limits, kernels)]
    found.sort(key=lambda finding: _ORDER.index(finding.effect))
    effects = {finding.effect for finding in found}
    value = next((effect for effect in (FAIL, INCONCLUSIVE) if effect in effects), PASS)
    return MismatchVerdict(value, tuple(found), kernels)


def judged_kernels(report: MismatchReport) -> tuple[str, ...]:
    """The settings that hold `prefill-decode`, else those that claim invariance, else all."""
    names = tuple(
        dict.fromkeys(
            [*(row.kernels for row in report.rows), *(each.kernels for each in report.missing)]
        )
    )
    settings = [KernelSettings.parse(name) for name in names]
    closing = tuple(each.name for each in settings if PREFILL in each.families)
    claiming = tuple(each.name for each in settings if each.claims_invariance)
    return closing or claiming or names


def _broken(
    report: MismatchReport, limits: MismatchLimits, kernels: tuple[str, ...]
) -> Iterator[Finding]:
    for row in report.wholes():
        if row.kernels not in kernels:
            continue
        if limits.max_k3 is not None and not row.k3 <= limits.max_k3:
            yield Finding("max-k3", FAIL, f"{row.arm}: K3 is {row.k3:.3g}, above {limits.max_k3:g}")
        # A gap that rounding alone can make is no broken limit: see `_lacking`.
        rounded_away = 0 < row.max_abs <= report.rounding_unit
        if limits.bitwise and row.bitwise_tokens < 1 and not rounded_away:
            differ = round((1 - row.bitwise_tokens) * row.tokens)
            yield Finding(
                "bitwise",
                FAIL,
                f"{row.arm}: {differ} of {count(row.tokens, 'token')} "
                f"{verb(differ, 'differs', 'differ')}, by up to {row.max_abs:.3g}",
            )


def _lacking(
    report: MismatchReport, limits: MismatchLimits, kernels: tuple[str, ...]
) -> Iterator[Finding]:
    """Why the measurement cannot carry a pass."""
    if report.rounding is not None:
        yield Finding("exact-logprobs", INCONCLUSIVE, report.rounding)
    for name, reason in report.unproven.items():
        if name in kernels:
            yield Finding("kernels-proven", INCONCLUSIVE, f"{name}: {reason}")
    for gone in report.missing:
        if gone.kernels in kernels:
            arm = ", ".join(filter(None, (gone.kernels, gone.trainer_layout, gone.trainer_dtype)))
            yield Finding(
                "every-link",
                INCONCLUSIVE,
                f"{arm}: {gone.link} could not be recomputed: {gone.reason}",
            )
    wholes = [row for row in report.wholes() if row.kernels in kernels]
    fewest = min((row.tokens for row in wholes), default=0)
    if fewest < limits.min_tokens:
        verb = "was" if fewest == 1 else "were"
        yield Finding(
            "enough-tokens",
            INCONCLUSIVE,
            f"{count(fewest, 'token')} {verb} compared, fewer than {limits.min_tokens}",
        )
    control = [row for row in report.wholes() if row.kernels == STOCK]
    if STOCK not in kernels and control and _dead(control):
        yield Finding(
            "control-alive",
            INCONCLUSIVE,
            "stock kernels show no gap either: this measurement cannot show one",
        )


def _dead(control: list[MismatchRow]) -> bool:
    return all(row.link == WHOLE and row.max_abs == 0 for row in control)
