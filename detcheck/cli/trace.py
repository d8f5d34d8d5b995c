"""`detcheck trace`: the first op whose bits for a request differ between a batch and alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcheck.cli.shared import AsJson, kept_in
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.targets import from_dict

if TYPE_CHECKING:
    from detcheck.probes.calls import CallPair
    from detcheck.probes.subject import Subject
    from detcheck.rundir import Run


def trace_command(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", show_default=False, help="Run directory in which answers diverge."
        ),
    ] = None,
    *,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", metavar="TEXT", help="A prompt, instead of a run."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With -p: hub id or folder. [default: the embedded]"),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            "-b", "--batch-sizes", metavar="1,B", help="With -p: the two loads. [default: 1,8]"
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="With -p: tokens at most. [default: 100]")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="continuous|static", help="With -p. [default: continuous]"),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With -p: branch, tag or commit of a hub model."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="With -p.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="With -p.")] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--kernels",
            metavar="NAME",
            help="Replay under these. [default: the run's whose answers diverge; else stock]",
        ),
    ] = None,
    out: Annotated[Path | None, kept_in("trace.json and a figure")] = None,
    mismatch: Annotated[
        bool,
        typer.Option(
            "--mismatch",
            help="With -p: compare decode steps with a prefill of the same tokens, as a sampler "
            "and a trainer compute them, instead of two loads.",
        ),
    ] = False,
    repro: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a script there that shows the difference without detcheck, with its "
            "environment and the text of an issue. Of a server's run: a script that asks it again.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name the first op whose rows for a request differ in a batch although its inputs are equal.

    The engine answers the request again, alone and in the batch in which its answer diverged, up
    to the token of divergence. Every aten op until then is compared bit for bit. The trace also
    gives each layer's difference at that token, and the gap between the best two tokens.
    """
    given = {
        "model": model,
        "revision": revision,
        "engine": engine,
        "dtype": dtype,
        "device": device,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if kernels is not None:
        _check_kernels(kernels)
    if mismatch:
        if run is not None or batch_sizes is not None or engine is not None or repro is not None:
            raise UsageError(
                "--mismatch traces a prompt without load: give -p, and leave RUN, --batch-sizes, "
                "--engine and --repro out."
            )
        from detcheck.cli.trace_mismatch import trace_mismatch

        trace_mismatch(prompt, options, kernels or "stock", max_new_tokens, out, as_json=as_json)
        return
    subject: Subject
    if run is not None:
        if options or any(value is not None for value in (prompt, batch_sizes, max_new_tokens)):
            raise UsageError("A run already has its options: give RUN, or -p with its options.")
        from detcheck.rundir import load

        loaded = load(run)
        if repro is not None and not loaded.traits.computes_here:
            _write_burst(loaded, repro, as_json=as_json)
            return
        from detcheck.probes.subject import subject_of_run

        subject = subject_of_run(loaded)
    else:
        from detcheck.probes.subject import subject_of_prompt

        experiment = _experiment(prompt, batch_sizes, kernels, max_new_tokens)
        subject = subject_of_prompt(experiment, from_dict(options))
    _trace(subject, kernels, out, repro, as_json=as_json)


def _trace(
    subject: Subject, kernels: str | None, out: Path | None, repro: Path | None, *, as_json: bool
) -> None:
    """Trace, print the result, and write the files that were asked for."""
    from detcheck.cli.console import keep_probe, print_json
    from detcheck.cli.trace_text import print_trace
    from detcheck.probes.trace import trace

    if repro is None:
        found = trace(subject, kernels)
    else:
        from detcheck.repro import files, op

        files.check_folder(repro)
        calls: list[CallPair] = []
        found = trace(subject, kernels, calls.append)
    print_json(found) if as_json else print_trace(found)
    if out is not None:
        keep_probe(found, "trace.json", out)
    if repro is not None:
        _name(op.write_op(found, next(iter(calls), None), repro, subject.target.model_name))


def _write_burst(run: Run, repro: Path, *, as_json: bool) -> None:
    """Write a script that asks the run's server again."""
    from detcheck.cli.console import print_json, print_line, stderr
    from detcheck.repro import endpoint, files

    files.check_folder(repro)
    paths = endpoint.write_burst(run, repro)
    if as_json:
        print_json({"written": [str(path) for path in paths]})
    _name(paths)
    print_line(
        "nothing was sent; the files hold the server's URL and the prompts: read them before you "
        "publish them.",
        "dim",
        console=stderr,
    )


def _name(paths: list[Path]) -> None:
    from detcheck.cli.console import print_line, stderr

    for path in paths:
        print_line(f"written: {path}", console=stderr)


def _check_kernels(kernels: str) -> None:
    from detcheck.kernels.settings import KernelSettings

    if "," in kernels:
        raise UsageError("Trace under one kernels setting at a time, such as -k stock.")
    KernelSettings.parse(kernels)


def _experiment(
    prompt: str | None, batch_sizes: str | None, kernels: str | None, max_new_tokens: int | None
) -> Experiment:
    if prompt is None:
        raise UsageError("Give a RUN in which answers diverge, or a prompt with -p.")
    sizes = _sizes(batch_sizes or "1,8")
    return Experiment(
        prompts=(prompt,),
        kernels=(kernels or "stock",),
        batch_sizes=sizes,
        completions=sum(sizes),
        max_new_tokens=100 if max_new_tokens is None else max_new_tokens,
    )


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"Batch sizes are whole numbers such as 1,8, not {text!r}.") from error
    if len(sizes) != 2 or min(sizes) != 1 or max(sizes) < 2:
        raise UsageError(
            f"A trace compares a request alone with the same in a batch: give 1 and a larger "
            f"batch size, such as -b 1,8, not {text}."
        )
    return sizes
