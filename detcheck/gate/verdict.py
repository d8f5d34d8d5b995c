"""From findings to a verdict: fail where a rule was broken, pass only where it could have been.

A rule looks at the judged groups of an analysis and reports findings. Real evidence that a limit
was broken fails whatever else is lacking; where evidence is lacking, nothing passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from detcheck.analysis.results import Analysis, Group
from detcheck.errors import ExitCode

PASS = "pass"
FAIL = "fail"
INCONCLUSIVE = "inconclusive"
NOTE = "note"
"""A finding that decides nothing, and that a reader of the verdict should know."""
SEVERITY = (FAIL, INCONCLUSIVE, NOTE)
EXIT_CODES = {
    PASS: ExitCode.OK,
    FAIL: ExitCode.FAILED,
    INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule has to say of one group, or of the whole run."""

    rule: str
    effect: str
    """`fail`, `inconclusive` or `note`."""
    sentence: str
    group: Group | None = None
    """None where it concerns the whole run."""


class Rule(Protocol):
    """One thing that a gate looks at."""

    def findings(self, analysis: Analysis, groups: Sequence[Group]) -> Iterable[Finding]:
        """What there is to say of the judged `groups` of `analysis`."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """The verdict on one prompt under one kernels setting."""

    group: Group
    verdict: str
    findings: tuple[Finding, ...]
    """Of this group and of the whole run, worst first."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of its findings."""
        return tuple(finding.sentence for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate concludes, and why."""

    value: str
    """`pass`, `fail` or `inconclusive`."""
    findings: tuple[Finding, ...]
    """Worst first."""
    cases: tuple[Case, ...]

    @property
    def exit_code(self) -> ExitCode:
        """What the process returns: 0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.value]

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each finding, which names its prompt where several were judged."""
        return tuple(self.reason(finding) for finding in self.findings)

    def reason(self, finding: Finding) -> str:
        """The sentence of one finding, with the prompt and kernels where several were judged."""
        case = next((case for case in self.cases if case.group is finding.group), None)
        if case is None or len(self.cases) == 1:
            return finding.sentence
        return f"{case.group.name}: {finding.sentence}"


def judge(analysis: Analysis, kernels: Sequence[str], rules: Iterable[Rule]) -> Verdict:
    """Judge every prompt of a run under each of `kernels`, which the run must have."""
    groups = [group for group in analysis.groups if group.kernels in kernels]
    found = [finding for rule in rules for finding in rule.findings(analysis, groups)]
    found.sort(key=lambda finding: SEVERITY.index(finding.effect))
    cases = tuple(_case(group, found) for group in groups)
    return Verdict(_conclude(found), tuple(found), cases)


def _case(group: Group, found: Sequence[Finding]) -> Case:
    own = tuple(f for f in found if f.group is None or f.group is group)
    return Case(group, _conclude(own), own)


def _conclude(findings: Iterable[Finding]) -> str:
    effects = {finding.effect for finding in findings}
    return next((effect for effect in (FAIL, INCONCLUSIVE) if effect in effects), PASS)
