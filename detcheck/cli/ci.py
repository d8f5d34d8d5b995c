"""`detcheck ci`: measure, judge, report and exit code in one command, for a CI job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.cli.shared import ApiKeyOption, AsJson, BudgetOption, budget_of
from detcheck.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from detcheck.analysis.results import Analysis
    from detcheck.budget import Budget
    from detcheck.config import Config
    from detcheck.experiment import Experiment
    from detcheck.gate.options import GateOptions
    from detcheck.gate.verdict import Verdict
    from detcheck.rundir import Run
    from detcheck.targets import Target

RUN = "run"
REPORTS = ("html", "md")
Files = dict[str, Path | None]
"""By option, the file that it names."""


def ci_command(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Experiment file with [experiment], [target] and [gate]. [default: detcheck.toml "
            "or pyproject.toml, here or above]",
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Ask this server instead of the file's target."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Accepted answers, instead of those the file names."),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for the run and its report.")
    ] = Path("results/ci"),
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML.")
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as SARIF 2.1.0.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as Markdown.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Remove the run that is in --out already, and measure anew."),
    ] = False,
    allow_inconclusive: Annotated[
        bool,
        typer.Option("--allow-inconclusive", help="Exit with 0 if the verdict is inconclusive."),
    ] = False,
    api_key_env: ApiKeyOption = None,
    budget: BudgetOption = None,
    as_json: AsJson = False,
) -> None:
    """Measure the experiment file, judge it, and write everything that a CI job shows.

    Goes on with a run that a cancelled job, or an earlier --budget, left in --out. Writes the
    report there, and the verdict to GitHub's job summary if there is one.

    If the answers of a model in this process diverge, the first op that differs is traced.

    Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive or not measured.
    """
    from detcheck.analysis import analyse
    from detcheck.cli.gate import show_verdict
    from detcheck.gate.options import GateOptions
    from detcheck.gate.verdict import judge

    settings, limits = _find(config)
    experiment, target = _settle(settings, endpoint)
    given = {} if baseline is None else {"baseline": baseline}
    options = GateOptions(**{**limits, **given})
    files = {"junit": junit, "sarif": sarif, "summary": summary}
    _check_before(options, experiment, target, files)
    time = budget_of(budget, options.min_comparisons)
    if fresh:
        _remove(out / RUN)
    analysis = analyse(_measure(experiment, target, out / RUN, api_key_env, time))
    verdict = judge(analysis, options)
    _write(verdict, analysis, settings, files, _first_op(verdict, analysis.run))
    show_verdict(verdict, options, as_json=as_json)
    _show_next(verdict, analysis.run)
    if verdict.exit_code is ExitCode.INCONCLUSIVE and allow_inconclusive:
        raise typer.Exit(ExitCode.OK)
    raise typer.Exit(verdict.exit_code)


def _find(config: Path | None) -> tuple[Config, Mapping[str, Any]]:
    """The experiment file, and the fields of the nearest [gate]; their files are named on stderr.

    Raises UsageError if there is no experiment file.
    """
    from detcheck.cli.settings import ASKED, find_settings, name_settings

    settings = find_settings(config, holding=ASKED)
    if not any(map(settings.section, ASKED)):
        raise UsageError(
            "There is no experiment file: write one with `detcheck run --print-config "
            "> detcheck.toml`, or name it by --config."
        )
    limits = find_settings(config, holding=("gate",))
    if limits.path == settings.path:
        name_settings(settings, *ASKED, "gate")
    else:
        name_settings(settings, *ASKED)
        name_settings(limits, "gate")
    return settings, limits.section("gate")


def _check_before(
    options: GateOptions, experiment: Experiment, target: Target, files: Files
) -> None:
    """Raise UsageError for everything that needs no measurement to be found wrong."""
    from detcheck.gate.changes import check_asked
    from detcheck.gate.files import accepted_answers, load_analysis

    options.check_answers(experiment)
    kernels = options.kernels_of(experiment.kernels)
    if options.control is not None:
        load_analysis(options.control)
    if options.baseline is not None:
        baseline = accepted_answers(options.baseline, kernels)
        check_asked(baseline, experiment, chat_template=getattr(target, "chat_template", None))
    for option, path in files.items():
        if path is not None:
            _check_writable(path, option)


def _check_writable(path: Path, option: str) -> None:
    """Make the folders above `path`. Raises UsageError if the file could not be written."""
    reason = "it is a folder" if path.is_dir() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            reason = "no permission"
    except OSError as error:
        reason = str(error.strerror)
    if reason is not None:
        raise UsageError(f"{path} cannot be written ({reason}): choose another file by --{option}.")


def _remove(path: Path) -> None:
    """Remove the run in `path`, if there is one."""
    from detcheck.rundir import RUN_FILE

    if (path / RUN_FILE).exists():
        shutil.rmtree(path)


def _settle(settings: Config, endpoint: list[str] | None) -> tuple[Experiment, Target]:
    from detcheck.cli.settings import fields_of_file
    from detcheck.experiment import Experiment
    from detcheck.targets import from_dict

    fields, options = fields_of_file(settings)
    if endpoint:
        names = ("model", "chat_template")
        options = {name: options[name] for name in names if name in options}
        options["endpoints"] = tuple(endpoint)
    target = from_dict({name: value for name, value in options.items() if value is not None})
    return target.settle(Experiment(**fields)), target


def _measure(
    experiment: Experiment,
    target: Target,
    path: Path,
    api_key_env: str | None,
    budget: Budget | None,
) -> Run:
    """A new run, or the rest of one that was cut off."""
    from detcheck import runner
    from detcheck.cli.progress import ProgressListener
    from detcheck.engines import Connection
    from detcheck.rundir import RUN_FILE, load

    connection = Connection(api_key_env=api_key_env) if api_key_env else None
    with ProgressListener(target.waiting) as listener:
        options: dict[str, Any] = {
            "connection": connection,
            "listener": listener,
            "budget": budget,
        }
        if not (path / RUN_FILE).exists():
            return runner.run(experiment, target, path, **options)
        there = load(path)
        if there.finished is None or not there.complete or there.can_go_on:
            return _resume(path, experiment=experiment, target=target, **options)
    if (there.experiment, there.target) != (experiment, target) or _was_judged(path):
        raise UsageError(
            f"{path} holds a finished run already: judge it by `detcheck gate {path}`, replace it "
            "by --fresh, or choose another --out."
        )
    return there


def _was_judged(path: Path) -> bool:
    """True if a job has come to the report of its run, which is written after the verdict."""
    return (path / "report.html").exists()


def _resume(path: Path, **options: Any) -> Run:
    """The rest of a run; a refusal names the option that measures anew."""
    from detcheck import runner
    from detcheck.errors import ChangedRunError

    try:
        return runner.resume(path, **options)
    except ChangedRunError as error:
        raise ChangedRunError(f"{str(error).rstrip('.')} by --fresh.") from error


def _first_op(verdict: Verdict, run: Run) -> str | None:
    """A sentence on the first op that differs, if answers of a model in this process diverged.

    The model answers again for it. The trace is kept in the run directory, so that its report shows
    it. None if the verdict is no fail, or the ops cannot be seen.
    """
    from detcheck.analysis.evidence import FAIL
    from detcheck.cli.console import keep_probe, print_line, stderr
    from detcheck.errors import DetcheckError

    diverged = any(judged.group.divergences for judged in verdict.groups if judged.value == FAIL)
    if not (diverged and run.traits.ops_visible):
        return None
    from detcheck.probes.trace import subject_of_run, trace

    try:
        found = trace(subject_of_run(run))
        keep_probe(found, "trace.json", run.path)
        sentence: str = found.sentence
    except DetcheckError as error:
        sentence = f"The first op that differs was not found: {error}"
    print_line(sentence, console=stderr)
    return sentence


def _show_next(verdict: Verdict, run: Run) -> None:
    """Print on stderr the path of the report, and the next step."""
    from detcheck.cli.console import print_line, stderr

    print_line(f"report: {run.path / 'report.html'}", console=stderr)
    if not run.complete and run.can_go_on:
        print_line("not complete; the same command goes on with this run", console=stderr)
    diverged = any(judged.group.divergences for judged in verdict.groups)
    if verdict.exit_code is ExitCode.FAILED and diverged:
        script = f"detcheck trace {run.path} --repro upstream"
        print_line(f"a script that shows it without detcheck: {script}", console=stderr)


def _write(
    verdict: Verdict,
    analysis: Analysis,
    settings: Config,
    files: Files,
    first_op: str | None,
) -> None:
    """The report beside the run, and each file that was asked for."""
    from detcheck.cli.prompt_places import prompt_places
    from detcheck.gate.github import VARIABLE, append_summary, write_summary
    from detcheck.gate.junit import write_junit
    from detcheck.gate.sarif import artifact_of, write_sarif
    from detcheck.report.write import write_report

    write_report(analysis, analysis.run.path, REPORTS)
    if files["junit"] is not None:
        write_junit(verdict, files["junit"])
    if files["sarif"] is not None and settings.path is not None:
        places = prompt_places(settings)
        uris = {prompt: (artifact_of(file), line) for prompt, (file, line) in places.items()}
        write_sarif(verdict, artifact_of(settings.path), files["sarif"], uris)
    if files["summary"] is not None:
        write_summary(verdict, files["summary"], first_op)
    if os.environ.get(VARIABLE):
        append_summary(verdict, Path(os.environ[VARIABLE]), first_op)
