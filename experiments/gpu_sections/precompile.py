"""Compile the kernels that the sections will launch, many at a time, before anything is measured.

    python experiments/gpu.py --compile 3/12     the fourth twelfth of them

Launchers are called with tensors that have no storage. Their launches are not run but compiled,
into Triton's cache on disk. An error here costs only time: a kernel that is not in the cache is
compiled when it is first launched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import (
    attention,
    configs,
    fused_rows,
    matmul,
    norm,
    reduce,
    rotary,
    softmax,
)
from detcheck.kernels.triton.attention import PLAIN
from detcheck.kernels.triton.attention_form import AttentionForm
from detcheck.kernels.triton.attention_layout import Layout
from detcheck.kernels.triton.attention_shapes import block_d, shapes
from detcheck.kernels.triton.launch import launches_to
from gpu_sections import tiles
from gpu_sections.common import DTYPES
from gpu_sections.correctness_attention import WINDOWED, WINDOWED_DIMS
from gpu_sections.layers import MODELS, Model, linear_shapes

ROW_LENGTHS = (128, 576, 4096, 4099, 151936)
PRODUCTS = (
    *((4096, 4096), (1024, 4096), (4096, 14336), (576, 576)),  # real layers
    *((640, 512), (640, 4096), (640, 4099)),  # ragged ones
    *((512, 576), (512, 4099)),  # and those by which tiles are tried
)
"""(N, K), beside the layers of the models in bfloat16."""
HEADS = ((9, 3, 64), (6, 2, 64), (32, 8, 128), (8, 8, 96), (16, 2, 256), (4, 4, 80))

FUSED = ("Llama-3-8B", "SmolLM2-135M")
EPSILONS = (1e-6, 1e-5)
"""Of RMSNorm: that of the random Llama, and of SmolLM2."""


def share_of(text: str) -> tuple[int, int]:
    """(index, count) of `3/12`."""
    index, _, count = text.partition("/")
    return int(index), int(count)


class Compiler:
    """Compiles launches in place of making them: its share of those that it sees, each once."""

    def __init__(self, share: tuple[int, int], compile_launch: Callable[..., Any] | None = None):
        self._share = share
        self._compile = compile_launch or warm_up
        self._seen: set[str] = set()

    def __call__(
        self, kernel: Any, grid: Any, args: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        """One launch."""
        key = repr((kernel.fn.__name__, *map(signature, args), named))
        index, count = self._share
        mine = key not in self._seen and len(self._seen) % count == index
        self._seen.add(key)
        if mine:
            try:
                self._compile(kernel, args, named)
            except Exception as error:
                print(f"not compiled ahead: {type(error).__name__}: {error}"[:200])

    @property
    def seen(self) -> int:
        """Kernels that it saw, in all shares."""
        return len(self._seen)


def warm_up(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Compile a launch into Triton's cache on disk."""
    compiled = kernel.warmup(*args, grid=(1,), **named)
    getattr(compiled, "run", None)  # also makes the launcher, in some versions of Triton


def signature(value: Any) -> Any:
    """What a kernel is compiled for, of one argument."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    if isinstance(value, int):
        return (value == 1, value % 16 == 0)
    if isinstance(value, float):
        return "float"
    return (str(value.base.dtype), value.block_shape)


def precompile(
    share: tuple[int, int],
    capability: tuple[int, int],
    compile_launch: Callable[..., Any] | None = None,
) -> int:
    """Compile a share of the kernels; returns how many kernels there are in all."""
    compiler = Compiler(share, compile_launch)
    with launches_to(compiler):
        for launch in launches(capability):
            launch()
    return compiler.seen


def launches(capability: tuple[int, int]) -> Iterator[Callable[[], Any]]:
    """Calls that launch each kernel in each way that the sections do."""
    for dtype in DTYPES:
        yield from product_launches(dtype, capability)
    yield from tile_launches()
    for dtype in DTYPES:
        for heads in HEADS:
            yield from attention_launches(*heads, dtype, capability)
        for dim, layer in zip(WINDOWED_DIMS, WINDOWED, strict=True):
            yield from windowed_launches(layer, dim, dtype, capability)
    for dtype in DTYPES:
        for length in ROW_LENGTHS:
            yield from row_launches(empty(64, length, dtype=dtype))
    for name in FUSED:
        yield from fused_launches(MODELS[name])


def product_launches(
    dtype: torch.dtype, capability: tuple[int, int]
) -> Iterator[Callable[[], Any]]:
    """Every tile: real layers, ragged ones, with a bias, and a plain right-hand side."""
    layers = [shape[2:] for shape in linear_shapes()] if dtype == torch.bfloat16 else []
    for columns, inner in dict.fromkeys([*PRODUCTS, *layers]):
        left, weight = empty(1, 1024, inner, dtype=dtype), empty(1, columns, inner, dtype=dtype)
        right, bias = weight.transpose(1, 2), empty(columns, dtype=dtype)
        tiles_of = dict.fromkeys(tile for _, tile in configs.table(dtype, capability))
        for tile, added in itertools.product(tiles_of, (None, bias)):
            yield partial(matmul.product, left, right, added, tile)
    plain = empty(1, 2048, 2048, dtype=dtype)
    for _, tile in configs.table(dtype, capability) if dtype == torch.bfloat16 else ():
        if not tile.descriptors:
            yield partial(matmul.product, plain, plain, None, tile)


def tile_launches() -> Iterator[Callable[[], Any]]:
    """The launches of section `tiles`."""
    weight = empty(1, 4096, 4096, dtype=torch.bfloat16).transpose(1, 2)
    for rows in tiles.ROWS:
        left = empty(1, rows, 4096, dtype=torch.bfloat16)
        for tile in tiles.search_space(rows):
            yield partial(matmul.product, left, weight, None, tile)


def attention_launches(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, capability: tuple[int, int]
) -> Iterator[Callable[[], Any]]:
    """Packed and padded requests, splits in turn and side by side, all shapes of the kernel."""
    query, key = empty(1, heads, 2048, dim, dtype=dtype), empty(1, kv_heads, 2048, dim, dtype=dtype)
    bounds = empty(9, dtype=torch.int32)
    layouts = (
        Layout(8, bounds, bounds),
        Layout(1, starts=empty(1, dtype=torch.int64)),
        Layout(1),
    )
    phases = shapes(heads // kv_heads, block_d(dim), dtype, capability)
    for shape, layout, parallel in itertools.product(
        dict.fromkeys(phases["prefill"] + phases["decode"]), layouts, (False, True)
    ):
        form = AttentionForm(query, key, key, layout, PLAIN, shape)
        yield partial(form, query, key, key, layout, parallel)
    yield lambda: attention.attention(query[:, :, :1], key, key, Layout(1))


def windowed_launches(
    layer: tuple[int, int, int, float | None, bool],
    dim: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Iterator[Callable[[], Any]]:
    """Queries in a window, and over a cache that dropped keys; and what their class is tried by."""
    heads, kv_heads, _, softcap, has_sinks = layer
    query, key = empty(1, heads, 2048, dim, dtype=dtype), empty(1, kv_heads, 2048, dim, dtype=dtype)
    sinks = empty(heads, dtype=dtype) if has_sinks else None
    bounds, positions = empty(9, dtype=torch.int32), empty(2048, dtype=torch.int64)
    layouts = (
        Layout(8, bounds, bounds),
        Layout(8, bounds, bounds, window=128),
        Layout(8, bounds, bounds, positions=positions),
        Layout(8, bounds, bounds, window=128, positions=positions),
    )
    phases = shapes(heads // kv_heads, block_d(dim), dtype, capability)
    for shape, layout, parallel in itertools.product(
        dict.fromkeys(phases["prefill"] + phases["decode"]), layouts, (False, True)
    ):
        form = AttentionForm(query, key, key, layout, Scores(None, softcap, sinks), shape)
        yield partial(form, query, key, key, layout, parallel, sinks)


def row_launches(x: torch.Tensor) -> Iterator[Callable[[], Any]]:
    """Norms, softmax and reductions."""
    yield lambda: norm.fused_rms_norm(x, [x.shape[-1]], x[0], 1e-6)
    yield lambda: norm.layer_norm(x, [x.shape[-1]], x[0], x[0], 1e-5)
    yield lambda: softmax.softmax(x, -1, False)
    yield lambda: softmax.log_softmax(x, -1, False)
    yield lambda: reduce.mean_dims(x, [-1])
    yield lambda: reduce.sum_dims(x, [-1])
    yield lambda: reduce.logsumexp(x, [-1])
    yield lambda: reduce.vector_norm(x, 2, [-1])
    yield lambda: reduce.cumsum(x, -1)


def fused_launches(model: Model) -> Iterator[Callable[[], Any]]:
    """The fused forms of a model in bfloat16."""
    x = empty(64, model.hidden, dtype=torch.bfloat16)
    for epsilon in EPSILONS:
        yield lambda e=epsilon: fused_rows.weighted_norm(x, e)(x, x[0])
    yield lambda: fused_rows.silu_times(x)(x, x)
    query, key = (
        empty(1, 64, heads, model.head_dim, dtype=torch.bfloat16).transpose(1, 2)
        for heads in (model.heads, model.kv_heads)
    )
    cos = empty(1, 64, model.head_dim, dtype=torch.bfloat16)
    yield lambda: rotary.Rotation(query, key, cos)(query, key, cos, cos)


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")
