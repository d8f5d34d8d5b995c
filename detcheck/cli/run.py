"""`detcheck run`: ask the same question under varying load and keep every answer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from detcheck.cli.options import all_fields, parameters, takes, target_fields, values
from detcheck.cli.settings import (
    ASKED,
    fields_of_file,
    fields_of_prompts,
    find_settings,
    name_settings,
    to_toml,
)
from detcheck.cli.shared import (
    ApiKeyOption,
    AsJson,
    BudgetOption,
    HeaderOption,
    ModelArgument,
    PromptOption,
    PromptsOption,
    TimeoutOption,
    budget_of,
)
from detcheck.config import Config
from detcheck.errors import ExitCode, UsageError
from detcheck.experiment import Experiment
from detcheck.gate.files import CONTROL_FOLDER
from detcheck.options import fields_of
from detcheck.targets import Target, from_dict
from detcheck.text import count

if TYPE_CHECKING:
    from detcheck.budget import Budget
    from detcheck.engines import Connection
    from detcheck.rundir import Run

_AS_ARGUMENT = ("model",)
OPTIONS = parameters(field for field in all_fields() if field.name not in _AS_ARGUMENT)


@takes(*OPTIONS)
def run_command(
    model: ModelArgument = None,
    *,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="The one seed S, short for --seeds S,.")
    ] = None,
    api_key_env: ApiKeyOption = None,
    header: HeaderOption = None,
    timeout: TimeoutOption = None,
    check_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Seconds that each short request of the checks before an experiment may take. "
            "[default: 60]",
        ),
    ] = None,
    control_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A second server, such as one without its determinism flag. It is asked the same "
            "afterwards, into the folder `control` of the run, and is the gate's control.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Run directory. [default: results/runs/<run_id>]"
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with an interrupted run.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Experiment file (TOML) with [experiment], [target] and [gate]; options override "
            "it. [default: detcheck.toml or pyproject.toml, here or above]",
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config", help="Print the experiment file for these options; measure nothing."
        ),
    ] = False,
    budget: BudgetOption = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Ask the same question under varying load and keep every answer.

    Every combination of prompt, kernels, seed and batch size is measured. The run directory keeps
    each completion with the batch that it was really computed in. Judge it with `detcheck gate`,
    look at it with `detcheck report`.

    Exit codes: 0 measured, 2 usage, 3 not measured to its end (finished trials are kept).
    """
    asked = values(fields_of(Experiment), given) | _seed(seed, given)
    fields, options = prompts_of(prompt, prompts)
    asked |= fields
    answered_by = options | values(target_fields(), given | {"model": model})
    connection = connection_of(api_key_env, header, timeout, check_timeout)
    time = budget_of(budget)
    if resume is not None:
        if out is not None or config is not None:
            raise UsageError(
                "--resume takes everything from its own folder: leave --out and --config out."
            )
        measured = _resume(resume, asked, answered_by, connection, time)
    else:
        settings = find_settings(config, holding=ASKED)
        name_settings(settings, *ASKED)
        experiment, target = _settle(settings, asked, answered_by)
        if print_config:
            gate = find_settings(config, holding=("gate",)).section("gate")
            print(to_toml(experiment, target, gate), end="")
            raise typer.Exit(ExitCode.OK)
        control = _control(target, control_endpoint)
        if time is not None and control is not None:
            time = replace(time, seconds=time.seconds / 2)  # the control gets the other half
        measured = _start(experiment, target, out, connection, time)
        if control is not None and measured.complete:
            _start(experiment, control, measured.path / CONTROL_FOLDER, connection, time)
    _show(measured, as_json=as_json)
    raise typer.Exit(ExitCode.OK if measured.complete else ExitCode.INCONCLUSIVE)


def _control(target: Target, endpoint: str | None) -> Target | None:
    """The target of the control, if there is one: as `target`, but at another endpoint.

    Raises UsageError if the target is no server, or is that endpoint itself.
    """
    if endpoint is None:
        return None
    if "endpoints" not in target.__struct_fields__:
        raise UsageError("--control-endpoint is for servers: give --endpoint URL.")
    if endpoint.rstrip("/") in {url.rstrip("/") for url in target.endpoints}:  # type: ignore[attr-defined]
        raise UsageError("--control-endpoint names a server that is judged: give another one.")
    _check_places(target.endpoints, endpoint)  # type: ignore[attr-defined]
    return msgspec.structs.replace(target, endpoints=(endpoint,))


def _check_places(endpoints: Sequence[str], control: str) -> None:
    """Raise UsageError if the control leads to a server that is judged, under another name."""
    import asyncio

    from detcheck.engines.openai.same_server import one_place

    for url in endpoints:
        if sign := asyncio.run(one_place(url, control)):
            raise UsageError(
                f"--control-endpoint is the server at {url} ({sign}): give another one."
            )


def _seed(seed: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """`--seed S` as a list of one seed."""
    if seed is None:
        return {}
    if given.get("seeds") is not None:
        raise UsageError("--seed and --seeds are both given: leave one out.")
    return {"seeds": (seed,)}


def connection_of(
    api_key_env: str | None,
    headers: list[str] | None,
    timeout: float | None,
    check_timeout: float | None,
) -> Connection | None:
    """How to reach endpoints; None if no option of it was given."""
    if api_key_env is None and not headers and timeout is None and check_timeout is None:
        return None
    from detcheck.engines import Connection

    connection = Connection(api_key_env=api_key_env, headers=tuple(headers or ()))
    if timeout is not None:
        connection = connection.within(timeout)
    if check_timeout is not None:
        connection = replace(connection, check_timeout_s=check_timeout)
    return connection


def _settle(
    settings: Config, asked: dict[str, Any], answered_by: dict[str, Any]
) -> tuple[Experiment, Target]:
    """The experiment and target of the file and the options; options override the file."""
    fields, options = fields_of_file(settings)
    target = from_dict(options | answered_by)
    return target.settle(Experiment(**fields | asked)), target


def _start(
    experiment: Experiment,
    target: Target,
    out: Path | None,
    connection: Connection | None,
    budget: Budget | None,
) -> Run:
    from detcheck.cli.progress import ProgressListener

    _check_connection(target, connection)
    with ProgressListener(target.waiting) as listener:
        from detcheck.runner import run

        return run(experiment, target, out, connection=connection, listener=listener, budget=budget)


def _check_connection(target: Target, connection: Connection | None) -> None:
    if connection is not None and target.traits.computes_here:
        raise UsageError(
            "--api-key-env, --header, --timeout and --check-timeout are for servers: give "
            "--endpoint URL."
        )


def _resume(
    path: Path,
    asked: dict[str, Any],
    answered_by: dict[str, Any],
    connection: Connection | None,
    budget: Budget | None,
) -> Run:
    """Options that are given beside --resume must be those of the run."""
    from detcheck import rundir
    from detcheck.cli.progress import ProgressListener

    stored = rundir.load(path)
    experiment = Experiment.from_dict(stored.experiment.to_dict() | asked)
    target = from_dict(stored.target.to_dict() | answered_by)
    _check_connection(target, connection)
    with ProgressListener(target.waiting) as listener:
        from detcheck.runner import resume

        return resume(
            path,
            experiment=experiment,
            target=target,
            connection=connection,
            listener=listener,
            budget=budget,
        )


def _show(run: Run, *, as_json: bool) -> None:
    """Print the table (or JSON) on stdout; failures and the next command on stderr."""
    from detcheck.cli.console import print_json, print_line, stderr, stdout

    if as_json:
        print_json({"run": str(run.path), "summary": run.summary, "answers": _answers(run)})
    else:
        from detcheck.analysis import analyse
        from detcheck.report.answers import answers_of
        from detcheck.report.answers_table import answers_table
        from detcheck.report.tables import summary_table

        analysis = analyse(run)
        stdout.print(summary_table(analysis))
        if (view := answers_of(analysis)) is not None:
            stdout.print(answers_table(view))
    for record in run.conditions:
        if record.error is not None:
            print_line(f"{record.condition_id}: {record.error}", "red", console=stderr)
    path = shlex.quote(str(run.path))
    if run.complete and run.can_go_on:
        made = sum(record.due for record in run.conditions)
        asked = sum(record.asked for record in run.conditions)
        print_line(
            f"the budget ended after {made:,} of {count(asked, 'completion')}, and every prompt "
            f"has the least that a verdict needs; go on with: detcheck run --resume {path}",
            console=stderr,
        )
    if not run.complete:
        print_line(f"not complete; go on with: detcheck run --resume {path}", console=stderr)
    print_line(f"kept in {run.path}; see it: detcheck report {path}", console=stderr)


def _answers(run: Run) -> list[dict[str, Any]]:
    """The statistics of parsed answers; empty if the experiment names no parser."""
    from detcheck.analysis import analyse
    from detcheck.analysis.answer_rows import answer_rows
    from detcheck.analysis.answers import stability_if_parsed

    return answer_rows(stability_if_parsed(analyse(run))) if run.experiment.answer else []


def prompts_of(texts: list[str] | None, file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The experiment's and the target's fields for the prompts of --prompt and --prompts."""
    from detcheck.cli.console import print_line, stderr
    from detcheck.prompts import check_text, read_prompts

    if not texts and file is None:
        return {}, {}
    given = [check_text(text, f"Prompt {n}") for n, text in enumerate(texts or (), start=1)]
    read = None if file is None else read_prompts(file)
    if read is not None and read.as_sent:
        line = f"prompts: {file} holds text as it was sent to a model: no chat template is applied"
        print_line(line, "dim", console=stderr)
    return fields_of_prompts(given, read)
