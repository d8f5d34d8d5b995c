"""Compile every kernel ahead of time, as its launcher would launch it, on a machine without a GPU.

    python compiling.py 80 90      prints one JSON object a kernel and architecture
    python compiling.py 90 few     a small case of each kernel only
    python compiling.py loads      prints how many binaries any number of rows needs

It is a program of its own, because the interpreter, which the other tests use, cannot be mixed
with the compiler in one process.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import (
    ahead,
    attention,
    attention_shapes,
    configs,
    fused_rows,
    grouped,
    in_order,
    matmul,
    norm,
    reduce,
    rotary,
    softmax,
    topk,
)
from detcheck.kernels.triton.ahead import Launch, launches_of
from detcheck.kernels.triton.attention import PLAIN
from detcheck.kernels.triton.attention_form import AttentionForm
from detcheck.kernels.triton.attention_layout import Layout

Named = Iterator[tuple[str, Launch]]
HALF = (torch.bfloat16, torch.float16)


def describe(name: str, launch: Launch, sm: int) -> dict[str, Any]:
    """What the compiler made of a launch, as far as the tests look at it."""
    made = ahead.compile_launch(launch, sm)
    return {
        "name": name,
        "kernel": launch.name,
        "sm": sm,
        "registers": made.registers,
        "stack_bytes": made.stack_bytes,
        "loop_spills": made.loop_spills,
        "shared_bytes": made.shared_bytes,
        "wgmma": made.ptx.count("wgmma.mma_async"),
        "serial_wgmma": waits_for_each_product(made.ptx),
        "mma": made.ptx.count("mma.sync"),
        "fma": made.ptx.count("fma.rn.f32"),
        "zero_minus": ahead.subtractions_from_zero(made.ptx),
        "fp_fusion": launch.options.get("enable_fp_fusion", True),
        "repeated": ahead.repeated_products(made.ttgir),
        "added": layouts_of_sums(made.ttgir),
    }


def layouts_of_sums(ttgir: str) -> list[str]:
    """Which thread holds which entry of each tensor that is added up."""
    layouts = dict(re.findall(r"(#\w+) = (#ttg\.[^\n]*)", ttgir))
    tensors = re.findall(r'"tt\.reduce"\(.*?\}\) : \(tensor<[^,]*, (#\w+)>', ttgir, re.DOTALL)
    return [layouts[name] for name in tensors]


def waits_for_each_product(ptx: str) -> bool:
    """Whether no wait leaves a product in flight, so that nothing overlaps with the products."""
    waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d+)", ptx)
    return bool(waits) and "1" not in waits


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def product_launches(sm: int, *, few: bool) -> Named:
    """Tiles of the tables: for linear layers, with a bias, and a plain right-hand side."""
    for dtype in HALF[:1] if few else (*HALF, torch.float32):
        table = configs.table(dtype, (sm // 10, sm % 10))
        for tile, rows in {tile: rows for rows, tile in (table[:1] if few else table)}.items():
            yield from tile_launches(dtype, tile, min(rows, 8192), few=few)


def tile_launches(dtype: torch.dtype, tile: configs.Tile, rows: int, *, few: bool) -> Named:
    left, weight = empty(1, rows, 4096, dtype=dtype), empty(1, 4096, 4096, dtype=dtype)
    linear, bias = weight.transpose(1, 2), empty(4096, dtype=dtype)
    calls: dict[str, Callable[[], object]] = {
        "linear": lambda: matmul.product(left, linear, None, tile),
    }
    # float16 has the code of bfloat16; descriptors take linear layers alone.
    if dtype != torch.float16 and not few:
        calls["with bias"] = lambda: matmul.product(left, linear, bias, tile)
        if not tile.descriptors:
            calls["plain"] = lambda: matmul.product(left, weight, None, tile)
    for layout, call in calls.items():
        yield f"matmul {layout} {short(dtype)} m={rows} {tile}", launches_of(call)[0]


def grouped_launches(sm: int, *, few: bool) -> Named:
    """Experts of Qwen3-30B-A3B."""
    offsets = empty(128, dtype=torch.int32)
    weight = empty(128, 1536, 2048, dtype=torch.bfloat16).transpose(1, 2)
    table = configs.table(torch.bfloat16, (sm // 10, sm % 10))
    tiles = dict.fromkeys(tile for _, tile in table if not tile.descriptors)
    for tile in list(tiles)[:1] if few else tiles:
        tokens = empty(512, 2048, dtype=torch.bfloat16)
        call = launches_of(lambda t=tile, x=tokens: grouped.product(x, weight, offsets, t))
        yield f"grouped bfloat16 {tile}", call[0]


def attention_launches(sm: int, *, few: bool) -> Named:
    """Head sizes, dtypes and shapes of the kernel; packed and padded; in turn and side by side."""
    sizes = ((64, 3), (80, 1), (128, 4), (256, 8))
    for dtype in HALF[:1] if few else (*HALF, torch.float32):
        for dim, group in sizes[2:3] if few or dtype == torch.float16 else sizes:
            block = attention_shapes.block_d(dim)
            phases = attention_shapes.shapes(group, block, dtype, (sm // 10, sm % 10))
            for shape in dict.fromkeys(phases["prefill"] + phases["decode"]):
                if not few or shape == phases["decode"][0]:
                    yield from shape_launches(dtype, dim, group, shape)
    yield from windowed_launches(sm, few=few)
    operands = attention_operands(torch.bfloat16, 128, 4)
    starts = Layout(1, starts=empty(1, dtype=torch.int64))
    for launch in launches_of(lambda: attention.attention(*operands, starts, parallel=True)):
        yield f"{launch.name} padded bfloat16", launch


WINDOWED = ((64, 8, None, True), (128, 4, None, False), (256, 2, 50.0, False))
"""(head size, heads of a key-value head, soft cap, sinks): GPT-OSS, Mistral, Gemma 2."""


def windowed_launches(sm: int, *, few: bool) -> Named:
    """Queries in a window, and queries over a cache that dropped the keys before the window."""
    bounds, positions = empty(9, dtype=torch.int32), empty(4096, dtype=torch.int64)
    window = Layout(8, bounds, bounds, window=128, positions=positions)
    behind = Layout(8, bounds, bounds, positions=positions)
    ways = {
        "in a window": (window, False), "in turn": (behind, False), "side by side": (behind, True)
    }  # fmt: skip
    for dim, group, cap, has_sinks in WINDOWED[:1] if few else WINDOWED:
        operands = attention_operands(torch.bfloat16, dim, group)
        sinks = empty(8 * group, dtype=torch.bfloat16) if has_sinks else None
        phases = attention_shapes.shapes(
            group, attention_shapes.block_d(dim), torch.bfloat16, (sm // 10, sm % 10)
        )
        for shape in dict.fromkeys(phases["decode"][:1] if few else sum(phases.values(), ())):
            for way, (layout, parallel) in ways.items():
                form = AttentionForm(*operands, layout, Scores(None, cap, sinks), shape)
                call = partial(form, *operands, layout, parallel, sinks)
                for launch in launches_of(call):
                    yield f"{launch.name} {way} bfloat16 windows dim={dim} {shape}", launch


def shape_launches(
    dtype: torch.dtype, dim: int, group: int, shape: attention_shapes.Shape
) -> Named:
    operands, bounds = attention_operands(dtype, dim, group), empty(9, dtype=torch.int32)
    layout = Layout(8, bounds, bounds)
    form = AttentionForm(*operands, layout, PLAIN, shape)
    for kind, parallel in (("in turn", False), ("side by side", True)):
        for launch in launches_of(lambda p=parallel: form(*operands, layout, p)):
            yield f"{launch.name} {kind} {short(dtype)} dim={dim} {shape}", launch


def attention_operands(dtype: torch.dtype, dim: int, group: int) -> tuple[torch.Tensor, ...]:
    key = empty(1, 8, 4096, dim, dtype=dtype)
    return empty(1, 8 * group, 4096, dim, dtype=dtype), key, key


def row_launches(*, few: bool) -> Named:
    """Norms, softmax and reductions of short and long rows."""
    for length in (576,) if few else (576, 151936):
        for name, call in row_calls(length).items():
            yield f"{name} length={length}", launches_of(call)[0]


def row_calls(length: int) -> dict[str, Callable[[], object]]:
    x = empty(64, length, dtype=torch.bfloat16)
    wide = empty(64, length, dtype=torch.float32)
    return {
        "rms_norm": lambda: norm.fused_rms_norm(x, [length], x[0], 1e-6),
        "layer_norm": lambda: norm.layer_norm(x, [length], x[0], x[0], 1e-5),
        "mean": lambda: reduce.mean_dims(wide, [-1], True),
        "sum of 8": lambda: reduce.sum_dims(empty(64, 8, length, dtype=torch.bfloat16), [1]),
        "prod": lambda: reduce.prod_dim(wide, -1),
        "logsumexp": lambda: reduce.logsumexp(wide, [-1]),
        "norm": lambda: reduce.vector_norm(wide, 2, [-1]),
        "running sums": lambda: reduce.cumsum(wide, -1),
        "topk": lambda: topk.topk(x[:, :128].contiguous(), 8),
        "softmax": lambda: softmax.softmax(x, -1, False),
        "softmax in order": lambda: softmax.softmax(x[None], -1, False),
        "product in order": lambda: in_order.multiply(x[None, :, :256], x[None, :, :256].mT),
        "log_softmax": lambda: softmax.log_softmax(wide, -1, False),
    }


NORM_LENGTHS = (48, 64, 128, 576, 960, 1024, 2048, 2880, 3584, 4096, 5120, 8192, 18432)
"""Heads of queries, and hidden sizes of models."""


def fused_launches(*, few: bool) -> Named:
    """The fused forms, and the mean in whose order their norm adds."""
    for dtype in HALF[:1] if few else (*HALF, torch.float32):
        for length in (576, 4096) if few else NORM_LENGTHS:
            x, weight = empty(64, length, dtype=dtype), empty(length, dtype=dtype)
            call = fused_rows.weighted_norm(x, 1e-6)
            yield f"fused norm {short(dtype)} length={length}", only_launch(call, x, weight)
            call = fused_rows.summed_norm(x, 1e-6)
            yield (
                f"fused norm of sum {short(dtype)} length={length}",
                only_launch(call, x, x, weight),
            )
            wide = empty(64, length, dtype=torch.float32)
            mean = launches_of(lambda x=wide: reduce.mean_dims(x, [-1], True))[0]
            yield f"fused mean {short(dtype)} length={length}", mean
        gate = empty(8, 14336, dtype=dtype)
        activation = fused_rows.silu_times(gate)
        yield f"gated {short(dtype)}", only_launch(activation, gate, gate)
        for heads, k_heads, dim in ((32, 8, 128), (9, 3, 64), (32, 32, 80), (16, 1, 256)):
            q, k = (empty(2, 4, n, dim, dtype=dtype).transpose(1, 2) for n in (heads, k_heads))
            cos = empty(2, 4, dim, dtype=dtype)
            rotation = rotary.Rotation(q, k, cos)
            yield f"rotary {short(dtype)} dim={dim}", only_launch(rotation, q, k, cos, cos)


def only_launch(call: Callable[..., object], *given: torch.Tensor) -> Launch:
    """The only launch of a call."""
    return launches_of(lambda: call(*given))[0]


def binaries_for_any_load() -> dict[str, int]:
    """How many binaries a linear layer and attention need over loads, one tile each."""
    weight = empty(1, 4096, 4096, dtype=torch.bfloat16).transpose(1, 2)
    bounds = empty(2, dtype=torch.int32)
    shape = attention_shapes.HOPPER_128["prefill"][0]
    kernels: dict[str, set[str]] = {}
    with ahead.noted() as launches:
        for load in (1, 2, 15, 16, 33, 64):
            left = empty(1, load, 4096, dtype=torch.bfloat16)
            matmul.product(left, weight, None, configs.anchor(configs.HOPPER))
            query = empty(1, 32, load, 128, dtype=torch.bfloat16)
            for past in (0, 7, 16):
                key = empty(load + past, 8, 128, dtype=torch.bfloat16).transpose(0, 1)[None]
                layout = Layout(load, bounds, bounds)
                form = AttentionForm(query, key, key, layout, PLAIN, shape)
                form(query, key, key, layout, False)
    for launch in launches:
        binary = repr((ahead.specialised(launch), launch.options))
        kernels.setdefault(launch.name, set()).add(binary)
    return {name: len(found) for name, found in kernels.items()}


def main(*arguments: str) -> None:
    if arguments == ("loads",):
        print(json.dumps(binaries_for_any_load()))
        return
    few = "few" in arguments
    for sm in (int(each) for each in arguments if each != "few"):
        for launches in (
            product_launches(sm, few=few), grouped_launches(sm, few=few),
            attention_launches(sm, few=few), row_launches(few=few),
            fused_launches(few=few),
        ):  # fmt: skip
            for name, launch in launches:
                print(json.dumps(describe(name, launch, sm)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
