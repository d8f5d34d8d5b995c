"""`detcheck run`: ask the same question under varying load and keep every answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.errors import ExitCode, UsageError
from detcheck.experiment import DEVICES, DTYPES, TRAFFIC, VLLM_EXECUTORS, Experiment

if TYPE_CHECKING:
    from detcheck.engines import Connection
    from detcheck.rundir import Run

_ENGINES_SHOWN = "continuous|static|openai|vllm"


def run_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Hub id or folder; with --endpoint the served name. [default: the embedded "
            "SmolLM2-135M-Instruct; with --endpoint the only model that is served]",
        ),
    ] = None,
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="What to ask; repeatable. [default: Tell me about Richard Feynman]",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts from a file: .txt (one a line) or .jsonl."),
    ] = None,
    completions: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--completions",
            metavar="N",
            help="Completions of each prompt under each kernels setting (and at each endpoint), "
            "shared out over the batch sizes. [default: 48]",
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            "-b",
            "--batch-sizes",
            metavar="LIST",
            help="Requests in flight together, comma-separated. [default: 1,4,8,16]",
        ),
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--kernels",
            metavar="LIST",
            help="stock, batch-invariant, a subset such as batch-invariant:attention, or "
            "fully-invariant (all seven invariances); comma-separated; not with --endpoint. "
            "[default: stock,batch-invariant]",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar=_ENGINES_SHOWN,
            help="What generates. [default: continuous; openai with --endpoint]",
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1; "
            "repeatable: several are compared with each other.",
        ),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the endpoint's API key; never written or shown.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE",
            help="'Name: value' or 'Name: env:VARIABLE' to send to the endpoint; repeatable.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Seconds that a request to an endpoint may take. [default: 1800]"
        ),
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            metavar="together|poisson:RATE",
            help="Requests to an endpoint all at once, or open loop, RATE a second. "
            "[default: together]",
        ),
    ] = None,
    tensor_parallel: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Tensor-parallel sizes to compare, for --engine vllm. [default: 1]"
        ),
    ] = None,
    vllm_executor: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(VLLM_EXECUTORS),
            help="What runs vLLM's ranks; ray: the Ray cluster that this machine has joined. "
            "[default: auto]",
        ),
    ] = None,
    traffic: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TRAFFIC),
            help="alone: the batch holds copies of the prompt; mixed: half of it is other "
            "requests of other lengths. [default: alone]",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens a completion at most. [default: 100]")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="0 is greedy; above, sampling is seeded. [default: 0]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Seed of sampling and load. [default: 0]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="|".join(DTYPES), help="[default: auto]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="|".join(DEVICES), help="[default: auto]")
    ] = None,
    no_chat_template: Annotated[
        bool, typer.Option("--no-chat-template", help="Send prompts as they are.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Run directory. [default: results/runs/<run_id>]"
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with an interrupted run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask the same question under varying load and keep every answer.

    Every combination of prompt, kernels and batch size is measured; the run directory keeps each
    completion with the batch it was really computed in. Judge it with `detcheck gate`, look at it
    with `detcheck report`.

    Exit codes: 0 measured, 2 usage, 3 not measured to its end (what there is is kept).
    """
    given = {
        "model": model,
        "prompts": _prompts(prompt, prompts),
        "kernels": _names(kernels),
        "batch_sizes": _sizes(batch_sizes, "Batch sizes", "1,4,8"),
        "completions": completions,
        "engine": engine,
        "endpoints": tuple(endpoint) if endpoint else None,
        "arrivals": arrivals,
        "tensor_parallel": _sizes(tensor_parallel, "Tensor-parallel sizes", "1,2"),
        "vllm_executor": vllm_executor,
        "traffic": traffic,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "chat_template": False if no_chat_template else None,
        "trust_remote_code": True if trust_remote_code else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if resume is not None and out is not None:
        raise UsageError("--resume goes on in its own directory: leave --out out.")
    connection = _connection(api_key_env, header, timeout)
    if resume is not None:
        measured = _resume(resume, options, connection)
    else:
        measured = _start(options, out, connection)
    _show(measured, as_json=as_json)
    raise typer.Exit(ExitCode.OK if measured.complete else ExitCode.INCONCLUSIVE)


def _connection(
    api_key_env: str | None, headers: list[str] | None, timeout: float | None
) -> Connection | None:
    """How to reach endpoints; None where nothing was said of it."""
    if api_key_env is None and not headers and timeout is None:
        return None
    from detcheck.engines import Connection

    connection = Connection(api_key_env=api_key_env, headers=tuple(headers or ()))
    return connection if timeout is None else connection.within(timeout)


def _start(options: dict[str, Any], out: Path | None, connection: Connection | None) -> Run:
    from detcheck.cli.progress import ProgressListener

    experiment = Experiment(**options)
    _check_connection(experiment, connection)
    with ProgressListener(experiment.engine) as listener:
        from detcheck.runner import run

        return run(experiment, out, connection=connection, listener=listener)


def _check_connection(experiment: Experiment, connection: Connection | None) -> None:
    if connection is not None and not experiment.endpoints:
        raise UsageError(
            "--api-key-env, --header and --timeout are for endpoints: give --endpoint URL."
        )


def _resume(path: Path, options: dict[str, Any], connection: Connection | None) -> Run:
    """Options that are given beside --resume must be those of the run."""
    from detcheck import rundir
    from detcheck.cli.progress import ProgressListener

    stored = rundir.load(path).experiment
    asked = Experiment.from_dict(stored.to_dict() | options)
    _check_connection(asked, connection)
    with ProgressListener(asked.engine) as listener:
        from detcheck.runner import resume

        return resume(path, experiment=asked, connection=connection, listener=listener)


def _show(run: Run, *, as_json: bool) -> None:
    """The table (or JSON) on stdout; what went wrong and what to do next on stderr."""
    from detcheck.cli.console import print_json, print_line, stderr, stdout

    if as_json:
        print_json({"run": str(run.path), "summary": run.summary})
    else:
        from detcheck.analysis import analyse
        from detcheck.report.tables import summary_table

        stdout.print(summary_table(analyse(run)))
    for record in run.conditions:
        if record.error is not None:
            print_line(f"{record.condition_id}: {record.error}", "red", console=stderr)
    if not run.complete:
        print_line(f"not complete; go on with: detcheck run --resume {run.path}", console=stderr)
    print_line(f"kept in {run.path}; see it: detcheck report {run.path}", console=stderr)


def _prompts(texts: list[str] | None, file: Path | None) -> tuple[str, ...] | None:
    from detcheck.prompts import check_text, read_prompts

    given = tuple(check_text(text, f"Prompt {n}") for n, text in enumerate(texts or (), start=1))
    return (*given, *(read_prompts(file) if file is not None else ())) or None


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _sizes(text: str | None, what: str, example: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{what} are whole numbers separated by commas, such as {example}, not {text!r}."
        ) from error
