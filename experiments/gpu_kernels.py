"""Sections of `gpu.py` on kernels alone: right, invariant, and how fast against stock."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_clock import Clock
from torch.nn import functional as F

from detcheck.kernels.triton import attention, classes, configs, matmul, norm, reduce, softmax
from detcheck.kernels.triton.configs import Tile

LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "Qwen3-8B": {
        "q, o": (4096, 4096),
        "k, v": (1024, 4096),
        "gate, up": (12288, 4096),
        "down": (4096, 12288),
        "lm_head": (151936, 4096),
    },
    "Llama-3-8B": {
        "gate, up": (14336, 4096),
        "down": (4096, 14336),
        "lm_head": (128256, 4096),
    },
    "SmolLM2-135M": {
        "q, o": (576, 576),
        "k, v": (192, 576),
        "gate, up": (1536, 576),
        "down": (576, 1536),
        "lm_head": (49152, 576),
    },
}
"""(N, K) of the linear layers; what Llama-3-8B shares with Qwen3-8B is measured once."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BOUNDARIES = (
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    44,
    45,
    63,
    64,
    65,
    127,
    128,
    129,
    512,
    513,
)
DEPTHS = (512, 1024, 1536, 2048, 4096, 4099)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LOGITS_BYTES = 4 << 30
"""Products with larger results than this are left out."""

Failures = list[str]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """Normal values on the GPU."""
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def short(dtype: torch.dtype) -> str:
    """`bfloat16` of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def median_ms(function: Callable[[], Any], rep: int = 25) -> float:
    """Median milliseconds of a call on the GPU; the L2 cache is overwritten before each."""
    from triton.testing import do_bench

    return float(do_bench(function, warmup=8, rep=rep, return_mode="median"))


def geometric_mean(values: list[float]) -> float:
    """0 for none."""
    return statistics.geometric_mean(values) if values else 0.0


# --- correctness -----------------------------------------------------------------------------


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
        failures += check()
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
    whole = matmul.addmm(bias, left, weight.t())
    name = f"matmul {short(dtype)} N={columns} K={inner}"
    note_error(
        errors, f"matmul {short(dtype)}", whole, left.double() @ weight.double().t() + bias.double()
    )
    found = [f"{name}: repeat"] * (not torch.equal(matmul.addmm(bias, left, weight.t()), whole))
    for rows in BOUNDARIES:
        if not torch.equal(matmul.addmm(bias, left[:rows], weight.t()), whole[:rows]):
            found.append(f"{name}: batch-size {rows}")
    rolled = matmul.addmm(bias, left.roll(37, 0), weight.t())
    found += [f"{name}: position"] * (not torch.equal(rolled, whole.roll(37, 0)))
    others = torch.cat([left[:1], random(99, inner, dtype=dtype, scale=30)])
    found += [f"{name}: neighbours"] * (
        not torch.equal(matmul.addmm(bias, others, weight.t())[:1], whole[:1])
    )
    batched = matmul.bmm(left.view(2, 512, inner), weight.t().expand(2, -1, -1))
    plain = matmul.mm(left, weight.t())
    found += [f"{name}: bmm"] * (not torch.equal(batched.flatten(0, 1), plain))
    return found


def note_error(
    errors: dict[str, float], name: str, got: torch.Tensor, expected: torch.Tensor
) -> None:
    """Keep the largest relative error (Frobenius) of a kernel."""
    error = ((got.double() - expected).norm() / expected.norm()).item()
    errors[name] = max(errors.get(name, 0.0), error)


def attention_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Head sizes and groups; one set of lengths that holds every boundary of a block."""
    for dtype in DTYPES:
        for heads, kv_heads, dim in (
            (9, 3, 64),
            (32, 8, 128),
            (8, 8, 96),
            (16, 2, 256),
            (4, 4, 80),
        ):
            yield lambda s=(heads, kv_heads, dim), d=dtype: attention_check(*s, d, errors)


def attention_check(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, errors: dict[str, float]
) -> Failures:
    name = f"attention {short(dtype)} {heads}/{kv_heads} heads of {dim}"
    sizes = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1300)
    wholes = [request(heads, kv_heads, n, dim, dtype) for n in sizes]
    prefill = packed(wholes)
    found: Failures = []
    for whole, out, size in zip(wholes, prefill, sizes, strict=True):
        note_error(errors, f"attention {short(dtype)}", out, exact_attention(whole))
        if not torch.equal(packed([whole])[0], out):
            found.append(f"{name}: batch-size at {size} keys")
        for cut in {size // 2, size // 3} - {0}:
            if not torch.equal(packed([tail(whole, cut)])[0], out[cut:]):
                found.append(f"{name}: chunking at {cut} of {size}")
    decoded = packed([tail(whole, whole[0].shape[2] - 1) for whole in wholes])
    for one, out, size in zip(decoded, prefill, sizes, strict=True):
        if not torch.equal(one[0], out[-1]):
            found.append(f"{name}: prefill-decode at {size} keys")
    for parallel in (True, False):
        again = packed([tail(whole, whole[0].shape[2] - 1) for whole in wholes], parallel)
        if not all(map(torch.equal, again, decoded)):
            found.append(f"{name}: splits {'side by side' if parallel else 'in turn'}")
    reordered = packed(wholes[::-1])[::-1]
    found += [f"{name}: position"] * (not all(map(torch.equal, reordered, prefill)))
    return found + padding_failures(name, wholes[-2], prefill[-2])


Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def padding_failures(name: str, whole: Request, expected: torch.Tensor) -> Failures:
    padded = [F.pad(x, (0, 0, 77, 0), value=5.0) for x in whole]
    out = attention.padded_attention(*padded, torch.tensor([77], device="cuda"), None, None)
    return [f"{name}: padding"] * (not torch.equal(out[0, 77:], expected))


def request(heads: int, kv_heads: int, length: int, dim: int, dtype: torch.dtype) -> Request:
    """Query, key and value (1, heads, length, dim)."""
    key, value = (random(1, kv_heads, length, dim, dtype=dtype) for _ in range(2))
    return random(1, heads, length, dim, dtype=dtype), key, value


def tail(whole: Request, first: int) -> Request:
    """The queries from `first` on, with all keys."""
    return whole[0][:, :, first:], whole[1], whole[2]


def packed(requests: list[Request], parallel: bool | None = None) -> list[torch.Tensor]:
    """All requests in one call; each one's (q, heads, dim)."""
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*requests, strict=True))
    q_lens = [one[0].shape[2] for one in requests]
    layout = attention.Layout(
        len(requests), bounds(q_lens), bounds([one[1].shape[2] for one in requests])
    )
    return list(attention.attention(query, key, value, layout, parallel=parallel)[0].split(q_lens))


def bounds(lengths: list[int]) -> torch.Tensor:
    """Cumulative lengths (requests + 1,) int32."""
    return torch.tensor([0, *lengths], device="cuda").cumsum(0).int()


def exact_attention(whole: Request) -> torch.Tensor:
    """(q, heads, dim) in float64."""
    query, key, value = (x[0].double() for x in whole)
    group = len(query) // len(key)
    key, value = (x.repeat_interleave(group, 0) for x in (key, value))
    scores = query @ key.transpose(1, 2) / query.shape[2] ** 0.5
    hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(0, 1)


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
    lines = [
        f"{result['checks']} checks, {len(result['failures'])} failures; relative error: {worst}"
    ]
    return lines + [f"- FAILED {failure}" for failure in result["failures"][:20]]


# --- the source's own experiments ------------------------------------------------------------


def source(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """`mm(a[:1], b)` against `mm(a, b)[:1]`, and one product 1000 times over."""
    del clock, options
    a = torch.linspace(-1000, 1000, 2048 * 2048, device="cuda").view(2048, 2048).bfloat16()
    b = torch.linspace(-1000, 1000, 2048 * 2048, device="cuda").view(2048, 2048).bfloat16()
    result = {
        name: (product(a[:1], b) - product(a, b)[:1]).abs().max().item()
        for name, product in (("stock", torch.mm), ("invariant", matmul.mm))
    }
    first = torch.mm(a, b)
    differing = sum(not torch.equal(torch.mm(a, b), first) for _ in range(1000))
    failures = [f"invariant mm differs by {result['invariant']}"] * (result["invariant"] != 0)
    return {"max_difference": result, "repeats_that_differ": differing, "failures": failures}


def show_source(result: dict[str, Any]) -> list[str]:
    found = result["max_difference"]
    return [
        f"mm(a[:1], b) against mm(a, b)[:1]: stock {found['stock']} (the source: 1669.25), "
        f"invariant {found['invariant']}; the same stock product 1000 times: "
        f"{result['repeats_that_differ']} differ"
    ]


# --- bitwise classes of tiles ----------------------------------------------------------------


def candidate_tiles(dtype: torch.dtype) -> dict[str, Tile]:
    """The tables' tiles, and those that might leave the class: why, in the name."""
    tiles = configs.table(dtype, torch.cuda.get_device_capability())
    named = {f"table {tile.block_m}x{tile.block_n}": tile for _, tile in tiles}
    if dtype == torch.float32:
        return named | {"block_k 64": Tile(32, 32, 64, 4, 2), "8 warps": Tile(64, 64, 32, 8, 2)}
    return named | {
        "mma.sync (16 rows)": Tile(16, 64, 64, 4, 4),
        "mma.sync (2 warps)": Tile(64, 64, 64, 2, 3),
        "block_k 32": Tile(128, 128, 32, 8, 4),
        "block_k 128": Tile(64, 128, 128, 4, 3),
        "weights first, wide": Tile(64, 128, 64, 4, 4, weights_first=True),
        "4 warps": Tile(128, 128, 64, 4, 3),
    }


def matmul_classes(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Which tiles, and which cuts of K, give the same bits on data made to tell them apart."""
    del options
    found = []
    for dtype in DTYPES:
        for inner in (576, 4096, 14336):
            if clock.spent():
                return {"kinds": found, "unfinished": True}
            found.append({"dtype": short(dtype), "K": inner, **classes_of(dtype, inner)})
    return {"kinds": found}


def classes_of(dtype: torch.dtype, inner: int) -> dict[str, Any]:
    kind = classes.Kind(inner, 512, dtype, transposed=True, device=torch.device("cuda:0"))
    left, right = classes.cancelling_operands(kind)
    tiles = candidate_tiles(dtype)
    anchor = configs.anchor(configs.table(dtype, torch.cuda.get_device_capability()))
    calls = {name: (tile, 0, False) for name, tile in tiles.items()}
    for segment in (512, 1024):
        calls[f"segments of {segment}, in turn"] = (replace(anchor, block_n=128), segment, False)
        calls[f"segments of {segment}, side by side"] = (next(iter(tiles.values())), segment, True)
    groups: list[tuple[torch.Tensor, list[str]]] = []
    problems = {}
    for name, (tile, segment, parallel) in calls.items():
        try:
            out = matmul.product(left, right, None, tile, segment, parallel)
        except Exception as error:  # a tile that this card does not take
            problems[name] = f"{type(error).__name__}: {error}"[:120]
            continue
        same = next((names for bits, names in groups if torch.equal(bits, out)), None)
        if same is None:
            groups.append((out, [name]))
        else:
            same.append(name)
    return {"classes": [names for _, names in groups], "refused": problems}


def show_classes(result: dict[str, Any]) -> list[str]:
    lines = []
    for kind in result["kinds"]:
        parts = " | ".join(", ".join(names) for names in kind["classes"])
        lines.append(f"- {kind['dtype']} K={kind['K']}: {len(kind['classes'])} classes: {parts}")
    return lines


# --- speed of products -----------------------------------------------------------------------


def layer_shapes() -> Iterator[tuple[str, str, int, int]]:
    """(model, layer, N, K)."""
    for model, layers in LAYERS.items():
        for layer, (columns, inner) in layers.items():
            yield model, layer, columns, inner


def matmul_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16 linear layers: stock (cuBLAS), ours, and batch_invariant_ops where it is there."""
    del options
    other = batch_invariant_ops_product()
    measured = []
    for rows in sorted(ROWS, key=lambda n: (n not in (1, 16, 256, 4096), n)):
        for model, layer, columns, inner in layer_shapes():
            if rows * columns * 2 > LOGITS_BYTES or (layer == "lm_head" and rows > 1024):
                continue
            if clock.spent():
                return {"rows": measured, "unfinished": True}
            left, weight = random(rows, inner), random(columns, inner)
            stock = median_ms(lambda x=left, w=weight: F.linear(x, w))
            ours = median_ms(lambda x=left, w=weight: matmul.mm(x, w.t()))
            row = {"model": model, "layer": layer, "M": rows, "N": columns, "K": inner}
            row |= {"stock_ms": stock, "ours_ms": ours, "ratio": stock / ours}
            if other is not None:
                row["batch_invariant_ops_ms"] = median_ms(lambda x=left, w=weight: other(x, w.t()))
            measured.append(row)
    return {"rows": measured}


def batch_invariant_ops_product() -> Callable[..., torch.Tensor] | None:
    """The other library's matrix product, where it can be imported."""
    try:
        from batch_invariant_ops import matmul_persistent
    except Exception:
        return None
    return matmul_persistent


def show_matmul(result: dict[str, Any]) -> list[str]:
    """Speed relative to stock (1 = as fast, higher is faster), geometric mean over the layers."""
    rows = result["rows"]
    models = list(LAYERS)
    lines = [
        "stock time / ours (1: as fast), geometric mean over layers; worst layer in brackets",
        "",
    ]
    lines += ["| M | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for count in ROWS:
        cells = []
        for model in models:
            ratios = [row["ratio"] for row in rows if row["M"] == count and row["model"] == model]
            cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "–")
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    ratios = [row["ratio"] for row in rows]
    lines.append("")
    lines.append(
        f"all: {geometric_mean(ratios):.3f} (goal 0.95), "
        f"worst {min(ratios, default=0):.2f} (goal 0.85)"
    )
    others = [
        row["stock_ms"] / row["batch_invariant_ops_ms"]
        for row in rows
        if "batch_invariant_ops_ms" in row
    ]
    if others:
        lines.append(f"batch_invariant_ops: {geometric_mean(others):.3f}, worst {min(others):.2f}")
    return lines


# --- attention -------------------------------------------------------------------------------


def attention_speed(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """bfloat16, 32 heads over 8, head size 128: prefill against flash, decoding against SDPA."""
    del options
    measured = []
    cases = [("prefill", 1, n, n) for n in (128, 1024, 4096, 8192)]
    cases += [
        ("decode", batch, 1, keys) for batch in (1, 16, 64, 256) for keys in (128, 1024, 8192)
    ]
    for phase, batch, queries, keys in cases:
        if clock.spent():
            return {"rows": measured, "unfinished": True}
        query = random(batch, 32, queries, 128)
        key, value = (random(batch, 8, keys, 128) for _ in range(2))
        layout = attention.Layout(batch, max_k=keys)
        row: dict[str, Any] = {"phase": phase, "batch": batch, "keys": keys}
        row["stock_ms"] = median_ms(lambda q=query, k=key, v=value: flash(q, k, v))
        for name, parallel in (("ours", None), ("in_turn", False)):
            row[f"{name}_ms"] = median_ms(
                lambda q=query, k=key, v=value, p=parallel, a=layout: attention.attention(
                    q, k, v, a, parallel=p
                )
            )
        measured.append(row | {"ratio": row["stock_ms"] / row["ours_ms"]})
    return {"rows": measured}


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Stock attention by its fastest kernel here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, enable_gqa=True
        )


def show_attention(result: dict[str, Any]) -> list[str]:
    lines = [
        "| phase | batch | keys | stock ms | ours ms | stock / ours |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['phase']} | {row['batch']} | {row['keys']} | {row['stock_ms']:.3f} | "
        f"{row['ours_ms']:.3f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    return lines


# --- what a launch costs the host ------------------------------------------------------------


def launch_overhead(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of the host for one linear layer of one row: what eager decoding waits for."""
    del clock, options
    x, weight = random(1, 576), random(576, 576)
    with torch.inference_mode():
        return {
            "stock_us": host_us(lambda: F.linear(x, weight)),
            "ours_us": host_us(lambda: matmul.linear(x, weight)),
        }


def host_us(function: Callable[[], Any], calls: int = 500) -> float:
    """Host microseconds a call, the device keeping up."""
    for _ in range(20):
        function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    elapsed = time.perf_counter() - started
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


def show_overhead(result: dict[str, Any]) -> list[str]:
    stock, ours = result["stock_us"], result["ours_us"]
    return [f"host time a linear layer: stock {stock:.1f} µs, ours {ours:.1f} µs"]


# --- better tiles ----------------------------------------------------------------------------


def search_space(rows: int) -> list[Tile]:
    """Tiles of the `wgmma` class worth trying for a number of rows."""
    if rows <= 64:
        height = 16 if rows <= 16 else 32 if rows <= 32 else 64
        return [
            Tile(height, width, depth, 4, stages, weights_first=True)
            for width in (64, 128)
            for depth, stages in ((64, 4), (64, 6), (128, 3), (128, 4))
        ]
    return [
        Tile(height, width, 64, warps, stages, group_m=group)
        for height, width, warps in ((64, 256, 4), (128, 128, 4), (128, 128, 8), (128, 256, 8))
        for stages in (3, 4)
        for group in (4, 16)
    ]


def tile_search(clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """For `configs.HOPPER`: the fastest of the candidates, and what segments of K would bring."""
    del options
    found = []
    for rows, (columns, inner) in itertools.product(
        (1, 16, 32, 64, 128, 512, 4096), ((4096, 4096), (1024, 4096), (4096, 14336), (14336, 4096))
    ):
        if clock.spent():
            return {"best": found, "unfinished": True}
        left, weight = random(1, rows, inner), random(columns, inner).t()[None]
        times: dict[str, float] = {}
        for tile in search_space(rows):
            times[describe(tile)] = time_or_inf(left, weight, tile, 0)
        best = min(times, key=lambda name: times[name])
        segments = {
            segment: time_or_inf(left, weight, search_space(rows)[0], segment)
            for segment in ((512, 1024, 2048) if rows <= 64 else ())
        }
        found.append(
            {"M": rows, "N": columns, "K": inner, "best": best, "best_ms": times[best],
             "stock_ms": median_ms(lambda x=left, w=weight: torch.bmm(x, w), 15),
             "segments_ms": segments, "times_ms": times}
        )  # fmt: skip
    return {"best": found}


def time_or_inf(left: torch.Tensor, right: torch.Tensor, tile: Tile, segment: int) -> float:
    """Median milliseconds; infinity for a tile that the card does not take."""
    try:
        return median_ms(lambda: matmul.product(left, right, None, tile, segment), 15)
    except Exception:
        return float("inf")


def describe(tile: Tile) -> str:
    """`128x256x64 w8 s4 g8`, and `t` where the weights come first."""
    turned = " t" if tile.weights_first else ""
    return (
        f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages} "
        f"g{tile.group_m}{turned}"
    )


def show_tiles(result: dict[str, Any]) -> list[str]:
    lines = [
        "| M | N | K | best tile | ms | stock ms | with segments (length: ms) |",
        "|---" * 7 + "|",
    ]
    for row in result["best"]:
        segments = ", ".join(f"{length}: {ms:.3f}" for length, ms in row["segments_ms"].items())
        lines.append(
            f"| {row['M']} | {row['N']} | {row['K']} | {row['best']} | {row['best_ms']:.3f} | "
            f"{row['stock_ms']:.3f} | {segments or '–'} |"
        )
    return lines
