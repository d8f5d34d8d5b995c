"""`detcheck trace`: the first op whose bits for a request differ between a batch and alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.cli.shared import AsJson, kept_in
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.targets import from_dict
from detcheck.text import count, verb

if TYPE_CHECKING:
    from detcheck.probes.calls import CallPair
    from detcheck.probes.subject import Subject
    from detcheck.probes.trace_results import FirstOp, FlipSide, LayerGrowth, Trace
    from detcheck.rundir import Run

_LAYERS_SHOWN = 12


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
    from detcheck.probes.trace import trace

    if repro is None:
        found = trace(subject, kernels)
    else:
        from detcheck.repro import files, op

        files.check_folder(repro)
        calls: list[CallPair] = []
        found = trace(subject, kernels, calls.append)
    print_json(found) if as_json else _print(found)
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


def _print(found: Trace) -> None:
    from detcheck.cli.console import print_line, stdout

    first = found.first
    compared = (
        f"{count(found.ops_compared, 'op')} ({count(found.tensors_compared, 'tensor')}) in "
        f"{count(found.steps_compared, 'forward pass')}"
    )
    if first is None:
        print_line(
            f"No op differs under {found.kernels} kernels: alone and "
            f"in a batch of {found.batch_size}, "
            f"{compared} agree bit for bit.",
            "green",
        )
    else:
        step = "the prefill" if first.step == 0 else f"decode step {first.step}"
        print_first(
            first,
            f"in {step}: {shape_text(first.reference_shape)} alone, "
            f"{shape_text(first.shape)} among {found.batch_size}",
            compared,
        )
    if found.layers:
        stdout.print()
        print_line(f"Layers at token {found.flip.position}:")
        stdout.print(layers_table(found.layers))
    stdout.print()
    _print_flip(found)


def print_first(first: FirstOp, place: str, compared: str) -> None:
    """Print the op that differs, where, and the count of the tensors compared up to there."""
    from detcheck.cli.console import print_line

    print_line(f"First op that differs: {first.op} in {first.module}", "bold")
    print_line(f"  {place}")
    if first.rows:
        print_line(
            f"  {first.rows_differ} of the request's {count(first.rows, 'row')} "
            f"{verb(first.rows_differ, 'differs', 'differ')}, by up to "
            f"{count(first.max_ulp, 'ULP')}"
        )
    print_line(
        "  not all of its tensors could be compared; a later op shows that its result differs"
        if first.indirect
        else f"  its {count(first.inputs_compared, 'compared input')} "
        f"{verb(first.inputs_compared, 'agrees', 'agree')} bit for bit"
    )
    print_line(f"  compared up to there: {compared}", "dim")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape such as `1×8×64`."""
    return "×".join(map(str, shape))


def layers_table(layers: Sequence[LayerGrowth]) -> Any:
    """A table of about a dozen layers, with the first that differs and the last."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True, max_width=32)
    for heading in ("elements differ", "up to ULPs", "change / norm"):
        table.add_column(heading, justify="right")
    every = max(1, -(-len(layers) // _LAYERS_SHOWN))
    last = len(layers) - 1
    start = next((i for i, layer in enumerate(layers) if layer.elements_differ), 0)
    for index, layer in enumerate(layers):
        if index in (start, last) or index % every == 0:
            table.add_row(
                layer.layer,
                f"{layer.elements_differ} of {layer.elements}",
                str(layer.max_ulp),
                f"{layer.relative:.1e}",
            )
    return table


def _print_flip(found: Trace) -> None:
    from detcheck.cli.console import print_line

    flip = found.flip
    if not flip.flipped:
        print_line(
            f"The tokens agree up to token {flip.position}; logits there change by up to "
            f"{flip.max_logit_change:g}."
        )
        return
    print_line(
        f"Token {flip.position} flips; logits there change by up to {flip.max_logit_change:g}:"
    )
    for label, side in (("alone", flip.reference), ("batch", flip.batch)):
        print_line(f"  {label}: {_side(side)}")


def _side(side: FlipSide) -> str:
    return f"“{side.token}” before “{side.runner_up}” by {side.gap:g}"
