"""`detcheck ops`: which op breaks which relation on this machine, stock beside batch-invariant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.cli.shared import AsJson, kept_in
from detcheck.errors import UsageError
from detcheck.text import count

if TYPE_CHECKING:
    from detcheck.probes.matrix import Line
    from detcheck.probes.ops import Cell

COLUMNS = {
    "repeat": "rep",
    "batch-size": "bat",
    "position": "pos",
    "neighbours": "nbr",
    "layout": "lay",
    "padding": "pad",
    "chunking": "chk",
    "prefill-decode": "dec",
    "prefix-cache": "pre",
}
"""Relations, and the headings of their columns: three letters, so that nine fit."""
_SHORT = {
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "batch-invariant": "inv.",
    "fully-invariant": "full",
}


def ops_command(
    *,
    shapes_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Hub id or folder whose layers set the shapes. [default: the embedded model]",
        ),
    ] = None,
    ops: Annotated[
        str | None, typer.Option(metavar="LIST", help="Ops, comma-separated. [default: all]")
    ] = None,
    relations: Annotated[
        str | None, typer.Option(metavar="LIST", help="Relations. [default: all]")
    ] = None,
    dtypes: Annotated[
        str | None, typer.Option(metavar="LIST", help="[default: bfloat16,float16,float32]")
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option("-k", "--kernels", metavar="LIST", help="[default: stock,batch-invariant]"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the probes.")] = 0,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch, tag or commit of that model on the hub."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")
    ] = False,
    out: Annotated[Path | None, kept_in("ops.json and a heat map")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which op breaks which invariance here: stock beside batch-invariant, bit for bit.

    A cell is the share of rows that differ from the reference; a dot means none. No model is
    loaded: the probes are seeded random data at the shapes of a model's layers. They include the
    batch sizes and lengths at which libraries are known to change kernels.
    """
    from detcheck.cli.console import keep_probe, print_json
    from detcheck.probes.ops import DTYPES, audit
    from detcheck.probes.shapes import shapes_of

    _check_device(device)
    shapes = shapes_of(shapes_from, revision=revision, trust_remote_code=trust_remote_code)
    with _progress() as on_case:
        cells = audit(
            shapes,
            ops=_names(ops),
            relations=_names(relations),
            dtypes=_names(dtypes) or DTYPES,
            kernels=_names(kernels) or ("stock", "batch-invariant"),
            device=device,
            seed=seed,
            on_case=on_case,
        )
    print_json({"cells": cells}) if as_json else _print(shapes.name, cells)
    if out is not None:
        keep_probe({"cells": cells}, "ops.json", out)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"Unknown device {device!r}: choose one of auto, cpu, cuda.")


class _progress:  # noqa: N801  (used as a function is)
    """A progress bar on stderr if that is a terminal; gives the function that updates it."""

    def __enter__(self) -> Any:
        from rich.progress import Progress

        from detcheck.cli.console import stderr

        self._bar = Progress(console=stderr, transient=True, disable=not stderr.is_terminal)
        self._bar.start()
        task = self._bar.add_task("probing ops", total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _print(name: str, cells: list[Cell]) -> None:
    """Print the matrix, then the classes of batch sizes, then the findings."""
    from detcheck.cli.console import print_line, stdout
    from detcheck.probes.matrix import class_words, lines

    rows = lines(cells)
    relations = [relation for relation in COLUMNS if any(relation in row.cells for row in rows)]
    print_line(f"Share of rows that differ, at the shapes of {name}")
    print_line("(· none, – does not apply; time relative to stock)", "dim")
    stdout.print(_table(rows, relations))
    split = [row for row in rows if len(row.classes) > 1]
    if split:
        stdout.print()
        print_line("Batch sizes that give the same bits, by class:")
    for row in split:
        label = " ".join((row.op, row.shape, _short(row.dtype), _short(row.kernels)))
        print_line(f"  {label}: {class_words(row.classes)}")
    stdout.print()
    for sentence, style in _findings(cells):
        print_line(sentence, style)


def _table(rows: list[Line], relations: list[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("op", no_wrap=True, max_width=22)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, max_width=12)
    for relation in relations:
        table.add_column(COLUMNS[relation], justify="right", no_wrap=True)
    table.add_column("ULPs", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    previous = None
    for row in rows:
        key = (row.op, row.shape)
        time = row.relative_time
        table.add_row(
            Text("" if key == previous else f"{row.op.replace('attention', 'attn')} {row.shape}"),
            Text(_short(row.dtype)),
            Text(_short(row.kernels)),
            *(_share(row.cells.get(relation)) for relation in relations),
            Text(_ulps(row.max_ulp)),
            Text("–" if time is None else f"{time:.2f}"),
        )
        previous = key
    return table


def _short(name: str) -> str:
    return _SHORT.get(name, name.replace("batch-invariant", "inv."))


def _share(cell: Cell | None) -> Any:
    from rich.text import Text

    if cell is None:
        return Text("–", style="dim")
    if not cell.rows_differ:
        return Text("·", style="dim")
    share = 100 * cell.rows_differ / cell.rows
    style = "bold red" if cell.promised else "yellow"
    shown = "<1%" if share < 1 else "all" if share > 99.5 else f"{share:.0f}%"
    return Text(shown, style=style)


def _ulps(count: int) -> str:
    """At most four characters. Beyond a million the exact figure has no meaning."""
    if not count:
        return "·"
    if count < 10_000:
        return str(count)
    return f"{count // 1000}k" if count < 1_000_000 else ">1M"


def _findings(cells: list[Cell]) -> list[tuple[str, str]]:
    """(sentence, style) pairs that sum up the matrix."""
    found = []
    broken = [cell for cell in cells if cell.promised and cell.rows_differ]
    promised = [cell for cell in cells if cell.promised]
    if broken:
        first = broken[0]
        found.append(
            (
                f"{first.kernels} kernels break their promise: {first.op} {first.shape} in "
                f"{first.dtype} under {first.relation}, and "
                f"{count(len(broken) - 1, 'other cell')}.",
                "bold red",
            )
        )
    elif promised:
        rows = sum(cell.rows for cell in promised)
        found.append((f"batch-invariant kernels: 0 of {rows:,} promised rows differ.", "green"))
    beyond = {
        cell.relation
        for cell in cells
        if cell.kernels != "stock" and not cell.promised and cell.rows_differ
    }
    if beyond:
        names = ", ".join(sorted(beyond))
        found.append((f"Not promised, and differ above: {names}.", "yellow"))
    return found
