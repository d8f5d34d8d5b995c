"""From findings to a verdict: fail if a rule was broken, pass only if it could have been.

A rule is a function that looks at the judged groups and reports findings. If a limit was really
broken, the verdict is fail, whatever else is lacking. If evidence is lacking, it is never pass.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from detcheck.analysis.answers import AnswerStability
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE, Finding
from detcheck.analysis.results import Analysis, Group
from detcheck.errors import ExitCode
from detcheck.gate.baseline import Baseline
from detcheck.gate.changes import check_held
from detcheck.gate.control import check_control
from detcheck.gate.files import baseline_named, control_run
from detcheck.gate.given import gate_input
from detcheck.gate.judged import Judged, judged_of
from detcheck.gate.options import GateOptions
from detcheck.gate.rules import RULES, check_limit
from detcheck.text import count

PASS = "pass"
MOST_NOTES = 3
"""Notes of one rule that are shown to a reader before the rest are counted."""
SEVERITY = (FAIL, INCONCLUSIVE, NOTE)
EXIT_CODES = {
    PASS: ExitCode.OK,
    FAIL: ExitCode.FAILED,
    INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True)
class GroupVerdict:
    """The verdict on one prompt under one kernels setting."""

    group: Group
    value: str
    """`pass`, `fail` or `inconclusive`."""
    findings: tuple[Finding, ...]
    """Those of this group and of the whole run, worst first."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of its findings."""
        return tuple(finding.sentence for finding in self.findings)


@dataclass(frozen=True, slots=True)
class FoldedFindings:
    """The findings of one rule with one effect, as a reader is shown them."""

    rule: str
    effect: str
    reasons: tuple[str, ...]
    """The sentences of the first of them."""
    more: int
    """How many are left out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusion of a gate, its reasons and its subject."""

    value: str
    """`pass`, `fail` or `inconclusive`."""
    findings: tuple[Finding, ...]
    """Worst first."""
    groups: tuple[GroupVerdict, ...]
    judged: Judged
    answers: tuple[AnswerStability, ...] = ()
    """The parsed answers of each judged kernels setting; empty without a limit on them."""

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the process: 0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.value]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentence of each finding, with its prompt and kernels if several were judged."""
        return tuple(self.reason(finding) for finding in self.findings)

    def reason(self, finding: Finding) -> str:
        """The sentence of one finding, with its prompt and kernels if several were judged."""
        if finding.group is None or len(self.groups) == 1:
            return finding.sentence
        return f"{finding.group.name}: {finding.sentence}"

    def folded(self, most: int) -> Iterator[FoldedFindings]:
        """The findings by effect and rule, of each at most `most`, and of notes `MOST_NOTES`."""
        kinds: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            kinds[finding.effect, finding.rule].append(finding)
        for (effect, rule), findings in kinds.items():
            shown = findings[: min(most, MOST_NOTES) if effect == NOTE else most]
            reasons = tuple(self.reason(finding) for finding in shown)
            yield FoldedFindings(rule, effect, reasons, len(findings) - len(shown))

    @property
    def summary(self) -> str:
        """One line: `20 prompts: 18 pass, 1 fail, 1 inconclusive`."""
        values = Counter(judged.value for judged in self.groups)
        counts = ", ".join(f"{values[value]} {value}" for value in EXIT_CODES if values[value])
        kernels = {judged.group.kernels for judged in self.groups}
        prompts = count(len({judged.group.prompt_index for judged in self.groups}), "prompt")
        settings = f" under {len(kernels)} kernels settings" if len(kernels) > 1 else ""
        return f"{prompts}{settings}: {counts}"


def judge(
    analysis: Analysis,
    options: GateOptions | None = None,
    *,
    baseline: Baseline | None = None,
    control: Analysis | None = None,
    now: datetime | None = None,
) -> Verdict:
    """Judge every prompt of a run under the kernels that `options` choose.

    `baseline` holds the run to accepted answers (see `baseline_of` and `read_baseline`); None takes
    those at the path in `options`, if there is one. `control` is the analysis of another run that
    serves as the control; None takes the run at the path in `options`, else the run in the folder
    `control` of this one, else the stock groups of the run itself. `now` is the time that the run's
    age is counted to; None is the present.

    Raises UsageError if the run lacks the kernels to judge, if its completions are too few to
    exceed the limit, or if the control or the baseline cannot be read or was asked something else.
    """
    options = options or GateOptions()
    baseline = baseline_named(analysis, options) if baseline is None else baseline
    control = control_run(analysis, options) if control is None else control
    given = gate_input(
        analysis,
        options,
        baseline=baseline,
        control=control,
        now=now or datetime.now(UTC),
    )
    if control is not None:
        check_control(control, analysis)
    if baseline is not None:
        check_held(baseline, analysis, given.groups)
    check_limit(given)
    found = [finding for rule in RULES for finding in rule(given)]
    found.sort(key=lambda finding: SEVERITY.index(finding.effect))
    return Verdict(
        value=_conclude(found),
        findings=tuple(found),
        groups=tuple(_group_verdict(group, found) for group in given.groups),
        judged=judged_of(given),
        answers=given.stabilities,
    )


def _group_verdict(group: Group, found: Sequence[Finding]) -> GroupVerdict:
    own = tuple(f for f in found if f.group is None or f.group is group)
    return GroupVerdict(group, _conclude(own), own)


def _conclude(findings: Iterable[Finding]) -> str:
    effects = {finding.effect for finding in findings}
    return next((effect for effect in (FAIL, INCONCLUSIVE) if effect in effects), PASS)
