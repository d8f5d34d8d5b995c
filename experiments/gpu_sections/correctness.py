"""Section `correctness`: every kernel against float64, and bit for bit across the relations."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from detcheck.kernels.triton import classes, matmul
from detcheck.kernels.triton.cublas import Library
from gpu_sections.clock import Clock
from gpu_sections.common import (
    DTYPES,
    Failures,
    describe,
    error_text,
    note_error,
    random,
    short,
    wrong,
)
from gpu_sections.correctness_attention import attention_checks, windowed_checks
from gpu_sections.correctness_rows import expert_checks, ordered_checks, row_checks
from gpu_sections.device import device

Checks = Iterator[Callable[[], Failures]]
BOUNDARIES = (
    *(1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 44, 45),
    *(63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 513),
)
DEPTHS = (512, 1024, 1536, 2048, 4096, 4099)
SHAPES = ((4096, 4096), (4096, 14336), (1024, 4096), (576, 576), (14336, 4096))
"""(N, K) of layers: cut sums and whole ones."""


def correctness(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Every kernel against float64, and bit for bit across the relations, at real shapes."""
    del options
    torch.manual_seed(0)
    checks = 0
    failures: Failures = []
    errors: dict[str, float] = {}
    every = itertools.chain(
        matmul_checks(errors),
        attention_checks(errors),
        windowed_checks(errors),
        row_checks(errors),
        expert_checks(errors),
        ordered_checks(errors),
    )
    for check in every:
        if clock.spent():
            failures.append("out of time: not every check was made")
            break
        checks += 1
        try:
            failures += check()
        except Exception as error:  # the other checks are still worth having
            if device.is_lost(error):
                raise
            failures.append(f"check {checks}: {error_text(error)}")
    failures += wrong(errors)
    return {"checks": checks, "failures": failures, "relative_error": errors}


def matmul_checks(errors: dict[str, float]) -> Checks:
    """Linear layers at the models' shapes and at boundary depths."""
    shapes = [*SHAPES, *((640, inner) for inner in DEPTHS)]
    for dtype in DTYPES:
        for columns, inner in device.few(shapes):
            yield lambda c=columns, k=inner, d=dtype: matmul_check(
                device.size(c), device.size(k), d, errors
            )


def matmul_check(
    columns: int, inner: int, dtype: torch.dtype, errors: dict[str, float]
) -> Failures:
    """A linear layer: right, and each row the same bits in every call."""
    rows = device.size(1024) // 2 * 2
    left, weight = random(rows, inner, dtype=dtype), random(columns, inner, dtype=dtype)
    bias = random(columns, dtype=dtype)
    right = weight.t()
    whole = matmul.mm(left, right)
    name = f"matmul {short(dtype)} N={columns} K={inner}"
    exact = left.double() @ right.double()
    note_error(errors, f"matmul {short(dtype)}", whole, exact)
    found = [f"{name}: repeat"] * (not torch.equal(matmul.mm(left, right), whole))
    for count in device.few(BOUNDARIES):
        if not torch.equal(matmul.mm(left[:count], right), whole[:count]):
            found.append(f"{name}: batch-size {count}")
    rolled = matmul.mm(left.roll(37, 0), right)
    found += [f"{name}: position"] * (not torch.equal(rolled, whole.roll(37, 0)))
    others = torch.cat([left[:1], random(99, inner, dtype=dtype, scale=30)])
    found += [f"{name}: neighbours"] * (not torch.equal(matmul.mm(others, right)[:1], whole[:1]))
    with_bias = matmul.addmm(bias, left, right)
    note_error(errors, f"addmm {short(dtype)}", with_bias, exact + bias.double())
    for count in (1, 17):
        if not torch.equal(matmul.addmm(bias, left[:count], right), with_bias[:count]):
            found.append(f"{name} with bias: batch-size {count}")
    found += [f"{name}: {each}" for each in ways_that_differ(left, weight)]
    batched = matmul.multiplied(left.view(2, rows // 2, inner), right.expand(2, -1, -1), None)
    found += [f"{name}: bmm"] * (not torch.equal(batched.flatten(0, 1), whole))
    return found


def ways_that_differ(left: torch.Tensor, weight: torch.Tensor) -> list[str]:
    """Ways that would be used for some number of rows, but give other bits than the others."""
    right = weight.t()
    kind = classes.classes(left[None], right[None], matmul.product)
    limits = list(dict.fromkeys(limit for limit, _ in kind.tiles))
    usable = dict.fromkeys(way for limit in device.few(limits) for way in kind.usable(limit))
    expected = matmul.mm(left, right)
    found = []
    for way in usable:
        library = isinstance(way, Library)
        rows = min(len(left), way.last) if library else len(left)
        out = matmul.product(left[None, :rows], right[None], None, way)[0]
        if not torch.equal(out, expected[:rows]):
            found.append(str(way) if library else describe(way))
    return found


def show_correctness(result: dict[str, Any]) -> list[str]:
    """How many checks there were, and how far kernels are from float64, a line a kernel."""
    errors = {tuple(name.rsplit(" ", 1)): error for name, error in result["relative_error"].items()}
    dtypes = list(dict.fromkeys(dtype for _, dtype in errors))
    lines = [f"{result['checks']} checks, {len(result['failures'])} failures"]
    lines += ["", "| relative error | " + " | ".join(dtypes) + " |"]
    lines.append("|---" * (1 + len(dtypes)) + "|")
    for kernel in dict.fromkeys(kernel for kernel, _ in errors):
        cells = [errors.get((kernel, dtype)) for dtype in dtypes]
        shown = " | ".join("–" if error is None else f"{error:.1e}" for error in cells)
        lines.append(f"| {kernel} | {shown} |")
    return lines
