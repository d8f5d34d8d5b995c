"""The output of the traces: the first op that differs, the layers, and the token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detcheck.text import count, verb

if TYPE_CHECKING:
    from detcheck.probes.trace_results import FirstOp, FlipSide, LayerGrowth, Trace

_LAYERS_SHOWN = 12


def print_trace(found: Trace) -> None:
    """Print the first op that differs, how the difference grew, and whether the token flips."""
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
