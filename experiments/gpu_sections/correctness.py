"""Section `correctness`: every kernel against float64, and bit for bit across the relations."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import classes, configs, matmul, norm, reduce, softmax
from gpu_sections.clock import Clock
from gpu_sections.common import DTYPES, Failures, describe, note_error, random, short, wrong
from gpu_sections.correctness_attention import attention_checks

BOUNDARIES = (
    *(1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 44, 45),
    *(63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 513),
)
DEPTHS = (512, 1024, 1536, 2048, 4096, 4099)


def correctness(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Every kernel against float64, and bit for bit across the relations, at real shapes."""
    del options
    torch.manual_seed(0)
    checks = 0
    failures: Failures = []
    errors: dict[str, float] = {}
    for check in itertools.chain(
        matmul_checks(errors), attention_checks(errors), row_checks(errors)
    ):
        if clock.spent():
            failures.append("out of time: not every check was made")
            break
        checks += 1
        try:
            failures += check()
        except torch.AcceleratorError:  # the GPU answers no more
            raise
        except Exception as error:  # the other checks are worth having
            failures.append(f"check {checks}: {type(error).__name__}: {error}"[:300])
    failures += wrong(errors)
    return {"checks": checks, "failures": failures, "relative_error": errors}


def matmul_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Linear layers at the models' shapes and at boundary depths."""
    shapes = [(4096, 4096), (4096, 14336), (1024, 4096), (576, 576)]
    shapes += [(640, inner) for inner in DEPTHS]
    for dtype in DTYPES:
        for columns, inner in shapes:
            yield lambda c=columns, k=inner, d=dtype: matmul_check(c, k, d, errors)


def matmul_check(
    columns: int, inner: int, dtype: torch.dtype, errors: dict[str, float]
) -> Failures:
    left, weight = random(1024, inner, dtype=dtype), random(columns, inner, dtype=dtype)
    bias = random(columns, dtype=dtype)
    right = weight.t()
    whole = matmul.mm(left, right)
    name = f"matmul {short(dtype)} N={columns} K={inner}"
    exact = left.double() @ right.double()
    note_error(errors, f"matmul {short(dtype)}", whole, exact)
    found = [f"{name}: repeat"] * (not torch.equal(matmul.mm(left, right), whole))
    for rows in BOUNDARIES:
        if not torch.equal(matmul.mm(left[:rows], right), whole[:rows]):
            found.append(f"{name}: batch-size {rows}")
    rolled = matmul.mm(left.roll(37, 0), right)
    found += [f"{name}: position"] * (not torch.equal(rolled, whole.roll(37, 0)))
    others = torch.cat([left[:1], random(99, inner, dtype=dtype, scale=30)])
    found += [f"{name}: neighbours"] * (not torch.equal(matmul.mm(others, right)[:1], whole[:1]))
    with_bias = matmul.addmm(bias, left, right)
    note_error(errors, f"addmm {short(dtype)}", with_bias, exact + bias.double())
    for rows in (1, 17, 129):
        if not torch.equal(matmul.addmm(bias, left[:rows], right), with_bias[:rows]):
            found.append(f"{name} with bias: batch-size {rows}")
    found += [f"{name}: tile {each}" for each in tiles_that_differ(left, weight)]
    batched = matmul.bmm(left.view(2, 512, inner), right.expand(2, -1, -1))
    found += [f"{name}: bmm"] * (not torch.equal(batched.flatten(0, 1), whole))
    return found


def tiles_that_differ(left: torch.Tensor, weight: torch.Tensor) -> list[str]:
    """Tiles that would be used for some number of rows, and give other bits than the others."""
    right = weight.t()[None]
    kind = classes.classes(left[None], right, matmul.product)
    limits = dict.fromkeys(limit for limit, _ in kind.tiles)
    usable = dict.fromkeys(tile for limit in limits for tile in kind.usable(limit))
    expected = matmul.mm(left, weight.t())
    segment = configs.segment_k(*weight.shape)
    return [
        f"{describe(tile)}, segments side by side: {parallel}"
        for tile, parallel in itertools.product(usable, (True, False) if segment else (None,))
        if not torch.equal(
            matmul.product(left[None], right, None, tile, segment, parallel)[0], expected
        )
    ]


def row_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Norm, softmax and reductions, rows of hidden size, head size and vocabulary."""
    ops: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "rms_norm": (
            lambda x: norm.fused_rms_norm(x, [x.shape[-1]], x[0], 1e-6)[0],
            lambda x: F.rms_norm(x, (x.shape[-1],), x[0], 1e-6),
        ),
        "softmax": (lambda x: softmax.softmax(x, -1, False), lambda x: x.softmax(-1)),
        "log_softmax": (lambda x: softmax.log_softmax(x, -1, False), lambda x: x.log_softmax(-1)),
        "mean": (lambda x: reduce.mean_dims(x, [-1]), lambda x: x.mean(-1)),
        "sum": (lambda x: reduce.sum_dims(x, [-1]), lambda x: x.sum(-1)),
    }
    for name, (ours, stock) in ops.items():
        for dtype in DTYPES:
            for length in (128, 576, 4096, 4099, 151936):
                yield lambda n=name, o=ours, s=stock, d=dtype, c=length: row_check(
                    n, o, s, c, d, errors
                )


def row_check(
    name: str,
    ours: Callable[..., Any],
    stock: Callable[..., Any],
    length: int,
    dtype: torch.dtype,
    errors: dict[str, float],
) -> Failures:
    x = random(513, length, dtype=dtype)
    whole = ours(x)
    note_error(errors, f"{name} {short(dtype)}", whole, stock(x.double()))
    label = f"{name} {short(dtype)} length={length}"
    if name == "rms_norm":  # its weight is the first row, which every call must share
        calls = {f"batch-size {n}": (x[:n], whole[:n]) for n in (1, 2, 33)}
    else:
        calls = {f"batch-size {n}": (x[7 : 7 + n].clone(), whole[7 : 7 + n]) for n in (1, 2, 33)}
        calls["position"] = (x.roll(5, 0), whole.roll(5, 0))
    return [
        f"{label}: {call}"
        for call, (rows, out) in calls.items()
        if not torch.equal(ours(rows), out)
    ]


def show_correctness(result: dict[str, Any]) -> list[str]:
    worst = ", ".join(f"{name} {error:.1e}" for name, error in result["relative_error"].items())
    return [
        f"{result['checks']} checks, {len(result['failures'])} failures; relative error: {worst}"
    ]
