"""`detcheck gate`: judge a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from detcheck.analysis.results import Analysis
    from detcheck.gate.verdict import Verdict

STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow", "note": ""}


def gate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory to judge.")],
    *,
    max_distinct: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Distinct answers allowed for each prompt. [default: 1, or no limit with "
            "--baseline alone]",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Earlier run whose answers this one must give."),
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--kernels",
            metavar="K",
            help="Kernels to judge, comma-separated. [default: batch-invariant where the run has "
            "it, else the only ones it has]",
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML too.")
    ] = None,
    github_summary: Annotated[
        bool, typer.Option("--github-summary", help="Append the verdict to the job's summary.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge a run: pass, fail or inconclusive.

    Where evidence is lacking (completions missing, batches not observed, kernels not proven, a
    load that never varied), the verdict is inconclusive, never pass. Options that are not given
    are taken from [tool.detcheck.gate] in pyproject.toml: max-distinct, baseline, kernels.

    Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive.
    """
    from detcheck.gate.github import append_summary, summary_path
    from detcheck.gate.junit import write_junit
    from detcheck.gate.options import GateOptions, read_options, split_kernels

    asked = GateOptions(max_distinct, baseline, None if kernels is None else split_kernels(kernels))
    options = asked.over(read_options(Path("pyproject.toml")))
    summary = summary_path() if github_summary else None
    verdict, about = _judge(run, options)
    _print_json(verdict, about) if as_json else _print(verdict, about)
    if junit is not None:
        write_junit(verdict, junit)
    if summary is not None:
        append_summary(verdict, summary)
    raise typer.Exit(verdict.exit_code)


def _judge(run: Path, options: Any) -> tuple[Verdict, dict[str, Any]]:
    """The verdict, and what was judged by which limits."""
    from detcheck.gate.baseline import hold_against
    from detcheck.gate.policy import rules_for
    from detcheck.gate.verdict import judge

    analysis = _analysis(run)
    kernels = options.kernels_of(analysis.run.experiment.kernels)
    held = []
    if options.baseline is not None:
        held.append(hold_against(_analysis(options.baseline), analysis, kernels))
    verdict = judge(analysis, kernels, rules_for(options.limit, *held))
    about = {
        "run": str(run),
        "run_id": analysis.run.run_id,
        "kernels": list(kernels),
        "max_distinct": options.limit,
        "baseline": held[0].baseline.run.run_id if held else None,
    }
    return verdict, about


def _analysis(path: Path) -> Analysis:
    from detcheck import rundir
    from detcheck.analysis.analyse import analyse

    return analyse(rundir.load(path))


def _print(verdict: Verdict, about: dict[str, Any]) -> None:
    from detcheck.cli.console import print_line, stdout, untrusted

    headline = untrusted(verdict.value.upper(), f"bold {STYLES[verdict.value]}")
    headline.append_text(untrusted(f"  {about['run']} ({', '.join(about['kernels'])})"))
    stdout.print(headline, soft_wrap=True)
    for finding in verdict.findings:
        line = f"  {finding.effect}: {verdict.reason(finding)}"
        print_line(line, STYLES[finding.effect])


def _print_json(verdict: Verdict, about: dict[str, Any]) -> None:
    from detcheck.cli.console import print_json

    prompts = [
        {
            "prompt": case.group.prompt,
            "kernels": case.group.kernels,
            "verdict": case.verdict,
            "completions": case.group.completions,
            "distinct": case.group.distinct,
            "reasons": case.reasons,
        }
        for case in verdict.cases
    ]
    findings = [
        {"rule": finding.rule, "effect": finding.effect, "reason": verdict.reason(finding)}
        for finding in verdict.findings
    ]
    document = {"verdict": verdict.value, "reasons": verdict.reasons, **about}
    print_json({**document, "prompts": prompts, "findings": findings})
