"""What the compiled kernels imply for the layers of real models: `results/gpu/roofline.md`.

Bytes, operations, programs and launches are counted; registers, stack and shared memory are read
from the binaries for sm_90. The times are bounds by the datasheets' rates. What `gpu.json` holds of
an H100 stands beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import triton

from gpu_sections import roofline_calls as calls
from gpu_sections.layers import MODELS, Model, linear_shapes
from gpu_sections.roofline_cost import H100, H200, PROCESSORS, Cost

ROWS = (1, 16, 64, 512, 4096)
"""Rows of a product: requests that are decoded, or tokens of a prefill."""
DECODING = ((1, 1024), (16, 1024), (64, 1024), (1, 8192), (64, 8192))
"""(requests, keys of each)."""
PREFILL = (512, 4096)
FILE = "roofline.md"
HEAD = (
    "# Roofline of the Triton kernels",
    "",
    "**Computed, but for the last two columns of some tables.** `python experiments/gpu.py "
    "--roofline` makes this page on any "
    f"machine, with Triton {triton.__version__} for sm_90. Bytes and operations are counted from "
    "shapes: each operand is read once, each result written once. Programs and launches are those "
    "that the launchers ask for, with the first tile of each table, which a card may replace by a "
    "faster one of the same class. Registers, stack and shared memory (of a program) are the "
    "binaries'.",
    "",
    f"*Resident* programs fit on one of the {PROCESSORS} processors at once; *waves* are programs "
    "over what is resident on all of them; *busy* is the share of processors with work, if "
    "programs take equally long. The bound is the larger of bytes at the memory's peak rate "
    f"({H100.name} {H100.bytes_a_second / 1e12:.2f} TB/s, {H200.name} "
    f"{H200.bytes_a_second / 1e12:.1f} TB/s) and operations at the busy share of "
    f"{H100.flops_a_second / 1e12:.0f} TFLOP/s. A bound is not a forecast: kernels reach a part "
    "of it. *Ours* and *stock* are what an H100 took (`make gpu`, `gpu.json`): cuBLAS, and the "
    "faster of flash attention and cuDNN. There, products of more than 64 rows may be cuBLASLt's.",
)
COLUMNS = (
    "MB", "GFLOP", "programs", "resident", "waves", "busy", "launches", "registers", "stack",
    "shared KiB", "H100 µs", "H200 µs",
)  # fmt: skip


MEASURED = ("ours µs", "stock µs")
HEADS = (32, 8, 128)
"""(heads, key-value heads, head size) that attention was measured with."""
Measured = dict[tuple[object, ...], tuple[float, float]]
"""Milliseconds of ours and of stock."""


def write(folder: Path) -> None:
    """Compute the page and write it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(page(measured_in(folder / "gpu.json"))) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def measured_in(file: Path) -> Measured:
    """What a card took for linear layers, by (N, K, M), and for attention, by phase, requests and
    keys; nothing if there is no such file."""
    if not file.exists():
        return {}
    sections = json.loads(file.read_text(encoding="utf-8"))["sections"]
    found: Measured = {}
    for row in sections.get("matmul", {}).get("rows", ()):
        found[row["N"], row["K"], row["M"]] = row["ours_ms"], row["stock_ms"]
    for row in sections.get("attention", {}).get("rows", ()):
        stock = min(row["flash_ms"], row["cudnn_ms"])
        found[row["phase"], row["batch"], row["keys"]] = row["ours_ms"], stock
    return found


def page(measured: Measured) -> Iterator[str]:
    """The lines of the page."""
    yield from HEAD
    yield from (
        "",
        "## Linear layers",
        "",
        *heading("model", "layers", "N", "K", "M", last=MEASURED),
    )
    for model, layers, columns, inner in linear_shapes():
        for rows in ROWS:
            if layers != "lm_head" or rows <= 64:
                names = (model, layers, columns, inner, rows)
                times = cells_of(measured, names[2:])
                yield line(names, calls.linear(rows, columns, inner), times)
    yield from ("", "## Experts", "", *heading("model", "layers", "N", "K", "tokens"))
    for name, model in MODELS.items():
        for layer, (columns, inner) in (model.expert_linear or {}).items():
            for rows in ROWS:
                yield line((name, layer, columns, inner, rows),
                           calls.experts(rows, columns, inner, model))  # fmt: skip
    names = "model", "phase", "requests", "keys"
    yield from ("", "## Attention", "", *heading(*names, last=MEASURED))
    for name, model in MODELS.items():
        known = measured if (model.heads, model.kv_heads, model.head_dim) == HEADS else {}
        for requests, keys in DECODING:
            cells = ("decode", requests, keys)
            cost = calls.decoding(requests, keys, model)
            yield line((name, *cells), cost, cells_of(known, cells))
        for length in PREFILL:
            cells = ("prefill", 1, length)
            cost = calls.prefill(length, model)
            yield line((name, *cells), cost, cells_of(known, cells))
    yield from ("", "## Rows", "", *heading("op", "rows", "length"))
    for op in calls.ROW_OPS:
        for rows, length in ((64, 4096), (64, 151936), (4096, 4096)):
            yield line((op, rows, length), calls.row_op(op, rows, length))
    yield from ("", "## A decoding step", "", *step_table())


def cells_of(measured: Measured, key: tuple[object, ...]) -> tuple[str, ...]:
    """The last two cells of a row."""
    times = measured.get(key)
    return ("–", "–") if times is None else tuple(f"{1e3 * ms:.1f}" for ms in times)


def heading(*names: str, last: tuple[str, ...] = ()) -> tuple[str, str]:
    """The first two lines of a table."""
    every = (*names, *COLUMNS, *last)
    return "| " + " | ".join(every) + " |", "|---" * len(every) + "|"


def line(names: tuple[object, ...], cost: Cost, last: tuple[str, ...] = ()) -> str:
    """One row of a table."""
    made = cost.compiled
    cells = (
        f"{cost.work.moved_bytes / 1e6:.2f}", f"{cost.work.flops / 1e9:.2f}", cost.programs,
        cost.resident, f"{cost.waves:.2f}", f"{cost.busy:.2f}", len(cost.launches),
        made.registers, made.stack_bytes, f"{made.shared_bytes / 1024:.0f}",
        f"{cost.seconds(H100) * 1e6:.1f}", f"{cost.seconds(H200) * 1e6:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, (*names, *cells, *last))) + " |"


def step_table() -> Iterator[str]:
    """The bound of a whole decoding step at some loads, with 1024 keys a request."""
    yield "All layers and the logits, with 1024 keys a request; entry-by-entry ops left out."
    yield ""
    yield "| model | requests | launches | MB | H100 ms | H200 ms |"
    yield "|---" * 6 + "|"
    for name, model in MODELS.items():
        for requests in (1, 16, 64):
            step = step_costs(model, requests)
            launches = sum(len(cost.launches) * count for cost, count in step)
            moved = sum(cost.work.moved_bytes * count for cost, count in step)
            times = (
                sum(cost.seconds(card) * count for cost, count in step) * 1e3
                for card in (H100, H200)
            )
            cells = " | ".join(f"{ms:.2f}" for ms in times)
            yield f"| {name} | {requests} | {launches} | {moved / 1e6:.0f} | {cells} |"


def step_costs(model: Model, requests: int) -> list[tuple[Cost, int]]:
    """(cost, how often) of the calls of a decoding step."""
    step = [
        (calls.linear(requests, *shape), 1 if layer == "lm_head" else model.layers)
        for layer, shape in model.linear.items()
    ]
    step += [
        (calls.experts(requests, *shape, model), model.layers)
        for shape in (model.expert_linear or {}).values()
    ]
    step.append((calls.decoding(requests, 1024, model), model.layers))
    step.append((calls.row_op("mean", requests, model.hidden), model.norms * model.layers + 1))
    if model.head_norms:
        rows = requests * (model.heads + model.kv_heads)
        step.append((calls.row_op("mean", rows, model.head_dim), model.layers))
    return step
