"""`detcheck gate`: judge a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.cli.options import parameters, takes, values
from detcheck.cli.shared import AsJson
from detcheck.errors import UsageError
from detcheck.gate.options import GateOptions
from detcheck.mismatch.options import MismatchLimits
from detcheck.options import fields_of

if TYPE_CHECKING:
    from detcheck.gate.verdict import Verdict

STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow", "note": ""}
MOST_OF_A_RULE = 10
"""Findings of one rule that are printed before the rest are counted; --json has all."""


@takes(*parameters(fields_of(GateOptions)), *parameters(fields_of(MismatchLimits)))
def gate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory to judge.")],
    *,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML too.")
    ] = None,
    github_summary: Annotated[
        bool, typer.Option("--github-summary", help="Append the verdict to the job's summary.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings file. [default: the nearest detcheck.toml, or pyproject.toml with "
            "[tool.detcheck], in this folder or above]",
        ),
    ] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Judge a run: pass, fail or inconclusive.

    If evidence is lacking (completions missing, batches not observed, too few comparisons, a
    control that is not alive, kernels not proven), the verdict is inconclusive, never pass. Options
    that are not given are taken from the [gate] section of the settings file.

    Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive.
    """
    from detcheck.gate.files import load_analysis
    from detcheck.gate.github import append_summary, summary_path
    from detcheck.gate.junit import write_junit
    from detcheck.gate.verdict import judge

    limits = MismatchLimits(**values(fields_of(MismatchLimits), given))
    if _is_mismatch(run):
        if values(fields_of(GateOptions), given) or junit or github_summary or config:
            raise UsageError(
                f"{run} is a folder of `detcheck mismatch`, judged by --max-k3, --bitwise and "
                "--min-tokens: leave the other options out."
            )
        raise typer.Exit(_judge_mismatch(run, limits, as_json=as_json))
    if limits != MismatchLimits():
        raise UsageError(
            "--max-k3, --bitwise and --min-tokens judge a folder of `detcheck mismatch`, and "
            f"{run} is none: leave them out."
        )
    options = _options(values(fields_of(GateOptions), given), config)
    summary = summary_path() if github_summary else None
    verdict = judge(load_analysis(run), options)
    show_verdict(verdict, options, as_json=as_json)
    if junit is not None:
        write_junit(verdict, junit)
    if summary is not None:
        append_summary(verdict, summary)
    raise typer.Exit(verdict.exit_code)


def _is_mismatch(folder: Path) -> bool:
    """True if the folder holds sampler against trainer; reads no library that is slow to load."""
    return (folder / "mismatch.json").is_file()


def _judge_mismatch(folder: Path, limits: MismatchLimits, *, as_json: bool) -> int:
    """Judge and print a measurement of sampler against trainer; returns the exit code."""
    from detcheck.analysis.mismatch.results import load_mismatch
    from detcheck.cli.mismatch import show_mismatch
    from detcheck.mismatch.verdict import judge_mismatch

    report = load_mismatch(folder)
    verdict = judge_mismatch(report, limits)
    show_mismatch(report, verdict, folder, as_json=as_json)
    return verdict.exit_code


def _options(given: dict[str, Any], file: Path | None) -> GateOptions:
    """The options that are `given`, and those of the settings file for the rest."""
    from detcheck.cli.settings import find_settings, name_settings

    try:
        GateOptions(**given)  # a mistake on the command line is not the file's
    except UsageError as error:  # of other commands the model is an argument
        raise UsageError(str(error).replace("`model`", "--model")) from error
    found = find_settings(file, holding=("gate",))
    try:
        found.build("gate", GateOptions)
    except UsageError as error:
        raise UsageError(str(error).replace("`model`", "gate.model")) from error
    name_settings(found, "gate")
    return GateOptions(**{**found.section("gate"), **given})


def show_verdict(verdict: Verdict, options: GateOptions, *, as_json: bool) -> None:
    """Print a verdict on stdout, for a person or as JSON."""
    _print_json(verdict, options) if as_json else _print(verdict)


def _print(verdict: Verdict) -> None:
    from detcheck.cli.console import print_line, print_wrapped, stdout, untrusted

    judged = verdict.judged
    headline = untrusted(verdict.value.upper(), f"bold {STYLES[verdict.value]}")
    headline.append_text(untrusted(f"  {judged.run} ({', '.join(judged.kernels)})"))
    stdout.print(headline, soft_wrap=True)
    for line, style in _lines(verdict):
        print_wrapped(f"  {line}", style, indent=4)
    for name, text in judged.facts():
        print_wrapped(f"  {name + ':':<13}{text}", "dim", indent=15)
    if len(verdict.groups) > 1:
        print_line(f"{verdict.value}: {verdict.summary}", f"bold {STYLES[verdict.value]}")


def _lines(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """(line, style) of each finding; of one rule and effect only the first ones, then a count."""
    for kind in verdict.folded(MOST_OF_A_RULE):
        for reason in kind.reasons:
            yield f"{kind.effect}: {reason}", STYLES[kind.effect]
        if kind.more:
            more = f"{kind.more} more of {kind.rule} (--json has all)"
            yield f"{kind.effect}: {more}", STYLES[kind.effect]


def _print_json(verdict: Verdict, options: GateOptions) -> None:
    from detcheck.analysis.answer_rows import answer_rows
    from detcheck.cli.console import print_json

    prompts = [
        {
            "prompt": judged.group.prompt,
            "kernels": judged.group.kernels,
            "verdict": judged.value,
            "completions": judged.group.completions,
            "distinct": judged.group.distinct_within_seed,
            "reasons": judged.reasons,
        }
        for judged in verdict.groups
    ]
    findings = [
        {"rule": finding.rule, "effect": finding.effect, "reason": verdict.reason(finding)}
        for finding in verdict.findings
    ]
    judged = verdict.judged
    about = {
        "run": judged.run,
        "run_id": judged.run_id,
        "kernels": judged.kernels,
        "max_distinct": options.limit,
        "min_comparisons": options.min_comparisons,
        "baseline": judged.baseline,
        "judged": judged,
    }
    document = {"verdict": verdict.value, "summary": verdict.summary, "reasons": verdict.reasons}
    answers = answer_rows(verdict.answers)
    print_json({**document, **about, "prompts": prompts, "findings": findings, "answers": answers})
