"""`detcheck mismatch`: a sampler's log-probabilities against a trainer's, link by link."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from detcheck.cli.options import parameters, takes, target_fields, values
from detcheck.cli.run import connection_of, prompts_of
from detcheck.cli.shared import (
    ApiKeyOption,
    AsJson,
    HeaderOption,
    ModelArgument,
    PromptOption,
    PromptsOption,
    TimeoutOption,
)
from detcheck.errors import ExitCode, UsageError
from detcheck.experiment import AUTO, DEFAULT_PROMPT, Experiment
from detcheck.kernels.settings import BATCH_INVARIANT, FULLY_INVARIANT, STOCK
from detcheck.mismatch.options import MismatchLimits, TrainerOptions
from detcheck.options import Field, fields_of
from detcheck.targets import Target, from_dict

if TYPE_CHECKING:
    from detcheck.analysis.mismatch.results import MismatchReport, MismatchRow
    from detcheck.mismatch.measure import Measured
    from detcheck.mismatch.rollouts import Rollout
    from detcheck.mismatch.verdict import MismatchVerdict

DEFAULTS: dict[str, Any] = {
    "completions": 16,
    "batch_sizes": (8,),
    "kernels": (STOCK, BATCH_INVARIANT, FULLY_INVARIANT),
    "max_new_tokens": 64,
    "temperature": 1.0,
}
"""Fields of the experiment whose defaults are others here."""
_HELP = {
    "completions": "Completions of each prompt.",
    "batch_sizes": "Requests that the sampler has in flight together.",
}
_SAMPLING = (*DEFAULTS, "top_k", "top_p", "min_p", "load_seed")
FOLDER = Path("results/runs")
RolloutsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Score these instead of sampling: JSON lines with prompt_ids, completion_ids and "
        "logprobs, also as TRL and verl name them.",
    ),
]


def _asked_fields() -> tuple[Field, ...]:
    """The experiment's fields that this command has, with its own defaults."""
    found = []
    for field in fields_of(Experiment):
        if field.name in _SAMPLING:
            default = DEFAULTS.get(field.name, field.default)
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else ""
            text = _HELP.get(field.name, field.option.help)
            option = replace(field.option, help=text, default=shown)
            found.append(replace(field, default=default, option=option))
    return tuple(found)


_NOT_OF_A_SAMPLER = ("model", "choices", "prefix_cache")
"""Fields of targets that are an argument here, or that a sampler does not vary."""


@takes(
    *parameters(_asked_fields()),
    *parameters(field for field in target_fields() if field.name not in _NOT_OF_A_SAMPLER),
    *parameters(fields_of(TrainerOptions)),
    *parameters(fields_of(MismatchLimits)),
)
def mismatch_command(
    model: ModelArgument = None,
    *,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    rollouts: RolloutsOption = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="Request i is sampled with the seed S + i. [default: 0]"),
    ] = None,
    api_key_env: ApiKeyOption = None,
    header: HeaderOption = None,
    timeout: TimeoutOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Folder to keep it in. [default: a new one in results/runs]",
        ),
    ] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Compare a sampler's log-probabilities with a trainer's, link by link.

    Samples completions, each request with a seed of its own, and scores the same tokens as a
    trainer does: whole sequences, gradients recorded. The gap is split into its links: recorded,
    decode steps recomputed, one prefill, the trainer's layout, the trainer's dtype. The headline
    names the link that carries it.

    Exit codes: 0 measured, or within the limits; 1 a limit is broken; 2 usage; 3 inconclusive, or
    a link could not be recomputed.
    """
    limits = MismatchLimits(**values(fields_of(MismatchLimits), given))
    if limits != MismatchLimits() and not limits.any:
        raise UsageError("--min-tokens is for a verdict: give --max-k3, --bitwise or both.")
    options = TrainerOptions(**values(fields_of(TrainerOptions), given))
    folder = _folder(out)
    sampling = values(_asked_fields(), given)
    texts, fields = prompts_of(prompt, prompts)
    target = from_dict(fields | values(target_fields(), given | {"model": model}))
    connection = connection_of(api_key_env, header, timeout, None)
    if rollouts is not None:
        served = connection is not None or not target.traits.ops_visible
        if texts or set(sampling) - {"kernels"} or seed is not None or served:
            raise UsageError(
                "--rollouts holds what was sampled: leave prompts, sampling and servers out."
            )
        measured = _scored(rollouts, sampling, target, options)
    else:
        if connection is not None and target.traits.computes_here:
            raise UsageError("--api-key-env, --header and --timeout are for servers.")
        experiment = _experiment(texts, sampling, target)
        measured = _sampled(experiment, target, options, seed or 0, connection)
    _keep(measured, folder)
    _end(measured.report, limits, folder, as_json=as_json)


def _folder(out: Path | None) -> Path:
    from detcheck.analysis.mismatch.results import is_mismatch

    folder = out or FOLDER / datetime.now(UTC).strftime("mismatch-%Y%m%d-%H%M%S-%f")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give another `out`.")
    if is_mismatch(folder):
        raise UsageError(f"{folder} holds a measurement already: give another `out`.")
    return folder


def _experiment(texts: dict[str, Any], sampling: dict[str, Any], target: Target) -> Experiment:
    """The experiment whose completions are those of all prompts together."""
    asked = DEFAULTS | sampling | texts
    if not target.traits.ops_visible and "kernels" not in sampling:
        asked["kernels"] = (AUTO,)
    each = asked["completions"]
    if each < 1:
        raise UsageError(f"`completions` must be at least 1, not {each}.")
    if len(asked["batch_sizes"]) != 1:
        raise UsageError("The sampler has one batch size here: give one `batch_sizes`, such as 8.")
    total = each * len(asked.get("prompts", (DEFAULT_PROMPT,)))
    batch = min(asked["batch_sizes"][0], total)
    return Experiment(**asked | {"completions": total, "batch_sizes": (batch,)})


def _sampled(
    experiment: Experiment, target: Target, options: TrainerOptions, seed: int, connection: Any
) -> Measured:
    from detcheck.mismatch.measure import measure_mismatch

    return measure_mismatch(
        experiment, target, options, first_seed=seed, connection=connection, say=_say
    )


def _scored(
    file: Path, sampling: dict[str, Any], target: Target, options: TrainerOptions
) -> Measured:
    from detcheck.mismatch.measure import measure_mismatch
    from detcheck.mismatch.rollouts import read_rollouts

    rollouts = read_rollouts(file)
    kernels = sampling.get("kernels", (STOCK,))
    experiment = Experiment(kernels=kernels, completions=1, batch_sizes=(1,))
    return measure_mismatch(
        target.settle(experiment), target, options, rollouts=rollouts, source=str(file), say=_say
    )


def _say(phrase: str) -> None:
    from detcheck.cli.console import print_line, stderr

    print_line(f"{phrase} …", "dim", console=stderr)


def _keep(measured: Measured, folder: Path) -> None:
    """Write the measurement, its rollouts and its page."""
    from detcheck.analysis.mismatch.results import MISMATCH_FILE
    from detcheck.cli.console import json_text
    from detcheck.mismatch.rollouts import rollout_line
    from detcheck.report.files import write_files
    from detcheck.report.mismatch_page import mismatch_files

    files = {
        f"rollouts-{kernels.replace(':', '-')}.jsonl": _lines(own, rollout_line)
        for kernels, own in measured.rollouts.items()
    }
    files[MISMATCH_FILE] = json_text(measured.report)
    files |= mismatch_files(measured.report)
    write_files(folder, files, "The measurement")


def _lines(rollouts: tuple[Rollout, ...], line: Any) -> str:
    return "".join(line(rollout) + "\n" for rollout in rollouts)


def _end(report: MismatchReport, limits: MismatchLimits, folder: Path, *, as_json: bool) -> None:
    """Print the measurement and, if there are limits, its verdict; ends with the exit code."""
    from detcheck.cli.console import print_line, stderr

    verdict = verdict_of(report, limits)
    show_mismatch(report, verdict, folder, as_json=as_json)
    for missing in report.missing:
        arm = ", ".join(filter(None, (missing.trainer_layout, missing.trainer_dtype)))
        line = f"{missing.kernels}: {missing.link} {arm} not recomputed: {missing.reason}"
        print_line(line, "red", console=stderr)
    path = shlex.quote(str(folder))
    print_line(f"kept in {folder}; judge it: detcheck gate {path} --bitwise", console=stderr)
    if verdict is not None:
        raise typer.Exit(verdict.exit_code)
    raise typer.Exit(ExitCode.INCONCLUSIVE if report.missing else ExitCode.OK)


def verdict_of(report: MismatchReport, limits: MismatchLimits) -> MismatchVerdict | None:
    """The verdict on a measurement; None if there is no limit."""
    from detcheck.mismatch.verdict import judge_mismatch

    return judge_mismatch(report, limits) if limits.any else None


def show_mismatch(
    report: MismatchReport, verdict: MismatchVerdict | None, folder: Path, *, as_json: bool
) -> None:
    """Print a measurement on stdout, for a person or as JSON."""
    from detcheck.cli.console import print_json, print_line, stdout

    if as_json:
        print_json(_document(report, verdict, folder))
        return
    stdout.print(_table(report))
    print_line(report.headline, "bold")
    if report.rounding is not None:
        print_line(f"note: {report.rounding}", "yellow")
    if verdict is not None:
        style = {"pass": "green", "fail": "red"}.get(verdict.value, "yellow")
        print_line(f"{verdict.value.upper()}  {', '.join(verdict.kernels)}", f"bold {style}")
        for reason in verdict.reasons:
            print_line(f"  {reason}")


def _document(
    report: MismatchReport, verdict: MismatchVerdict | None, folder: Path
) -> dict[str, Any]:
    kept = ("rows", "headline", "rounding", "unproven", "faults", "missing", "slices")
    document = {name: msgspec.to_builtins(getattr(report, name)) for name in kept}
    document["folder"] = str(folder)
    if verdict is not None:
        document |= {"verdict": verdict.value, "reasons": verdict.reasons}
    return document


def _table(report: MismatchReport) -> Any:
    """Every row with the measures that fit a terminal; JSON and the page have all."""
    from rich.table import Table

    from detcheck.analysis.mismatch.results import WHOLE
    from detcheck.cli.console import untrusted

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("kernels", "link", "trainer"):
        table.add_column(heading, no_wrap=True)
    for heading in ("K3", "mean |r|", "max |r|", "equal"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len({row.trainer_dtype for row in report.wholes()}) > 1
    for row in report.rows:
        style = "bold" if row.link == WHOLE else ""
        cells = (row.kernels, row.link, _trainer(row, several), *_numbers(row))
        table.add_row(*(untrusted(cell, style) for cell in cells))
    return table


def _trainer(row: MismatchRow, with_dtype: bool) -> str:
    parts = (row.trainer_layout, row.trainer_dtype if with_dtype else None)
    return " ".join(part for part in parts if part)


def _numbers(row: MismatchRow) -> tuple[str, ...]:
    measures = (row.k3, row.mean_abs, row.max_abs)
    return (*(f"{value:.2g}" for value in measures), f"{row.bitwise_tokens:.1%}")
