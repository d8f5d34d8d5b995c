"""`detcheck compare`: two runs, or two samples files of an evaluation, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.cli.shared import AsJson
from detcheck.errors import UsageError
from detcheck.text import count

if TYPE_CHECKING:
    from detcheck.analysis.compare import GroupPair, RunComparison


def compare_command(
    left: Annotated[
        Path,
        typer.Argument(metavar="A", help="Run directory, or samples file."),
    ],
    right: Annotated[
        Path, typer.Argument(metavar="B", help="Run directory, or samples file, to compare with.")
    ],
    filter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Filter of the samples files. [default: the first of both]"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Metric of the samples files. [default: the first of both]"
        ),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run of such items whose measured load noise the difference of the scores of two "
            "samples files is compared with.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, or two samples files of lm-evaluation-harness: do they agree?

    For each prompt that both asked: how many answers each gave, how many they share, the chance
    that one completion of each are equal, and where their references diverge. It judges nothing
    (exit code 0); `detcheck gate --baseline` does.

    Of two samples files, written with `lm_eval --log_samples`: which items differ, where their
    responses part, and whether the difference of the scores is within load noise.
    """
    if left.is_file() or right.is_file():
        _check_both_files(left, right)
        from detcheck.cli.compare_samples import show_samples

        show_samples(left, right, filter=filter, metric=metric, noise=noise, as_json=as_json)
        return
    if filter is not None or metric is not None or noise is not None:
        raise UsageError("--filter, --metric and --noise are for samples files: leave them out.")
    from detcheck import rundir
    from detcheck.analysis.analyse import analyse
    from detcheck.analysis.compare import compare

    comparison = compare(analyse(rundir.load(left)), analyse(rundir.load(right)))
    _print_json(comparison) if as_json else _print(comparison)


def _check_both_files(left: Path, right: Path) -> None:
    for path in (left, right):
        if not path.is_file():
            kind = "a run directory" if path.is_dir() else "not there"
            raise UsageError(f"{path} is {kind}, and the other is a file: give two of one kind.")


def _print(comparison: RunComparison) -> None:
    from detcheck.cli.console import print_line, stdout
    from detcheck.text import quoted

    print_line(f"A  {comparison.left.path}")
    print_line(f"B  {comparison.right.path}")
    numbers = _numbers(comparison)
    for prompt, number in numbers.items():
        print_line(f"{number}  {quoted(prompt, 72)}")
    stdout.print(_pairs_table(comparison, numbers))
    for pair in comparison.pairs:
        if pair.divergence is not None:
            name = f"{numbers[pair.prompt]} {_kernels(pair)}"
            print_line(f"{name}: the references differ, {pair.divergence.sentence}")
    if len(comparison.conditions) > 1:
        stdout.print(_conditions_table(comparison, numbers))
    for line in _differences(comparison):
        print_line(line)


def _differences(comparison: RunComparison) -> Iterator[str]:
    """How the runs themselves differ, one line for each difference."""
    if comparison.compared_tokens is not None:
        yield f"answers are compared up to token {comparison.compared_tokens}, the smaller limit"
    for phrase in comparison.experiment_differences:
        yield f"experiment: {phrase}"
    for phrase in comparison.model_differences:
        yield f"model: {phrase}"
    for phrase in comparison.environment_differences:
        yield f"environment: {phrase}"
    for name, prompts in (("A", comparison.only_left), ("B", comparison.only_right)):
        if prompts:
            yield f"only in {name}: {count(len(prompts), 'prompt')}"


def _numbers(comparison: RunComparison) -> dict[str, str]:
    """A number for each prompt, so that the tables fit the width of a terminal."""
    prompts = dict.fromkeys(pair.prompt for pair in comparison.pairs)
    return {prompt: str(number) for number, prompt in enumerate(prompts, start=1)}


def _kernels(pair: GroupPair) -> str:
    if pair.left.kernels == pair.right.kernels:
        return pair.left.kernels
    return f"{pair.left.kernels} / {pair.right.kernels}"


def _table(*columns: str, title: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("kernels", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _pairs_table(comparison: RunComparison, numbers: Mapping[str, str]) -> Any:
    from detcheck.cli.console import untrusted
    from detcheck.report.text import number, percent

    table = _table(
        *("distinct", "shared", "agree", "references", "tok/s"),
        title="A / B; agree: chance that one completion of each are equal;\n"
        "references: equal, or the place at which they diverge",
    )
    for pair in comparison.pairs:
        left, right = pair.left, pair.right
        cells = (
            numbers[pair.prompt],
            _kernels(pair),
            f"{left.distinct} / {right.distinct}",
            str(pair.shared),
            percent(pair.agreement),
            _references(pair),
            f"{number(left.tokens_per_second)} / {number(right.tokens_per_second)}",
        )
        table.add_row(*map(untrusted, cells))
    return table


def _conditions_table(comparison: RunComparison, numbers: Mapping[str, str]) -> Any:
    """Agreement by batch size: a row for each prompt and kernels setting."""
    from detcheck.cli.console import untrusted
    from detcheck.report.text import percent

    sizes = sorted({pair.batch_size for pair in comparison.conditions})
    table = _table(*map(str, sizes), title="agree, by batch size")
    rows: dict[tuple[str, str], dict[int, float | None]] = {}
    for pair in comparison.conditions:
        where = f" {pair.placement}" if pair.placement else ""
        key = (numbers[pair.prompt], pair.kernels + where)
        rows.setdefault(key, {})[pair.batch_size] = pair.agreement
    for names, by_size in rows.items():
        cells = (*names, *(percent(by_size.get(size)) for size in sizes))
        table.add_row(*map(untrusted, cells))
    return table


def _references(pair: GroupPair) -> str:
    if pair.divergence is not None:
        return f"{pair.divergence.unit} {pair.divergence.position}"
    return "equal" if pair.references_equal else "none"


def _print_json(comparison: RunComparison) -> None:
    from detcheck.cli.console import print_json

    print_json(
        {
            "left": {"run": comparison.left.path, "run_id": comparison.left.run_id},
            "right": {"run": comparison.right.path, "run_id": comparison.right.run_id},
            "pairs": [_pair_row(pair) for pair in comparison.pairs],
            "conditions": comparison.conditions,
            "compared_tokens": comparison.compared_tokens,
            "only_left": comparison.only_left,
            "only_right": comparison.only_right,
            "experiment_differences": comparison.experiment_differences,
            "environment_differences": comparison.environment_differences,
            "model_differences": comparison.model_differences,
        }
    )


def _pair_row(pair: GroupPair) -> dict[str, Any]:
    sides = {
        name: {
            "kernels": group.kernels,
            "completions": group.completions,
            "distinct": group.distinct,
            "tokens_per_second": group.tokens_per_second,
            "relative_cost": group.relative_cost,
        }
        for name, group in (("left", pair.left), ("right", pair.right))
    }
    return {
        "prompt": pair.prompt,
        **sides,
        "shared": pair.shared,
        "agreement": pair.agreement,
        "references_equal": pair.references_equal,
        "parting": pair.divergence,
    }
