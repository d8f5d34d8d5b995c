"""Compile the kernels that the sections will launch, many at a time, before anything is measured.

    python experiments/gpu.py --compile 3/12     the fourth twelfth of them

Launchers are called with tensors that have no storage; their launches are not run but compiled,
into Triton's cache on disk. What goes wrong here costs time alone: a kernel that is not in the
cache is compiled where it is first launched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detcheck.kernels.triton import (
    attention,
    configs,
    descriptors,
    matmul,
    norm,
    reduce,
    softmax,
)
from gpu_sections import tiles
from gpu_sections.common import DTYPES

MODULES = (attention, descriptors, matmul, norm, reduce, softmax)
ROW_LENGTHS = (128, 576, 4096, 4099, 151936)
PRODUCTS = (
    *((4096, 4096), (1024, 4096), (576, 576)),  # real layers
    *((640, 512), (640, 4096), (640, 4099)),  # ragged ones
    *((512, 576), (512, 4099)),  # and those by which tiles are tried
)
"""(N, K)."""
HEADS = ((9, 3, 64), (6, 2, 64), (32, 8, 128), (8, 8, 96), (16, 2, 256), (4, 4, 80))


def share_of(text: str) -> tuple[int, int]:
    """(index, count) of `3/12`."""
    index, _, count = text.partition("/")
    return int(index), int(count)


class Compiler:
    """Stands in for a kernel: `compiler[grid](…)` compiles what it would launch."""

    def __init__(self, kernel: Any, share: tuple[int, int], seen: dict[str, bool]):
        self._kernel = kernel
        self._share = share
        self._seen = seen

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._compile

    def _compile(self, *args: Any, **kwargs: Any) -> None:
        key = repr((self._kernel.fn.__name__, *map(signature, args), kwargs))
        index, count = self._share
        mine = key not in self._seen and len(self._seen) % count == index
        self._seen[key] = True
        if mine:
            try:
                compiled = self._kernel.warmup(*args, grid=(1,), **kwargs)
                getattr(compiled, "run", None)  # also makes the launcher, in some versions
            except Exception as error:
                print(f"not compiled ahead: {type(error).__name__}: {error}"[:200])


def signature(value: Any) -> Any:
    """What of an argument a kernel is compiled for."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    if isinstance(value, int):
        return (value == 1, value % 16 == 0)
    if isinstance(value, float):
        return "float"
    return (str(value.base.dtype), value.block_shape)


def precompile(share: tuple[int, int], capability: tuple[int, int]) -> int:
    """Compile a share of the kernels; returns how many there are in all."""
    seen: dict[str, bool] = {}
    kernels = [(m, name, getattr(m, name)) for m in MODULES for name in vars(m)]
    kernels = [(m, name, kernel) for m, name, kernel in kernels if name.endswith("_kernel")]
    for module, name, kernel in kernels:
        setattr(module, name, Compiler(kernel, share, seen))
    try:
        for launch in launches(capability):
            launch()
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
    return len(seen)


def launches(capability: tuple[int, int]) -> Iterator[Callable[[], Any]]:
    """Calls that launch each kernel in each way that the sections do."""
    for dtype in DTYPES:
        yield from product_launches(dtype, capability)
    yield from tile_launches()
    for dtype in DTYPES:
        for heads in HEADS:
            yield from attention_launches(*heads, dtype)
    for dtype in DTYPES:
        for length in ROW_LENGTHS:
            yield from row_launches(empty(64, length, dtype=dtype))


def product_launches(
    dtype: torch.dtype, capability: tuple[int, int]
) -> Iterator[Callable[[], Any]]:
    """Every tile: real layers, ragged ones, with a bias, and a plain right-hand side."""
    every = dict.fromkeys(tile for _, tile in configs.table(dtype, capability))
    for columns, inner in PRODUCTS:
        left, weight = empty(1, 1024, inner, dtype=dtype), empty(1, columns, inner, dtype=dtype)
        right, bias = weight.transpose(1, 2), empty(columns, dtype=dtype)
        segment = configs.segment_k(columns, inner)
        for tile, added, parallel in itertools.product(
            every, (None, bias), (False, True) if segment else (False,)
        ):
            if not (segment and tile.descriptors):
                yield partial(matmul.product, left, right, added, tile, segment, parallel)
    plain = empty(1, 2048, 2048, dtype=dtype)
    for tile in every if dtype == torch.bfloat16 else ():
        if not tile.descriptors:
            yield lambda t=tile: matmul.product(plain, plain, None, t)


def tile_launches() -> Iterator[Callable[[], Any]]:
    """What section `tiles` tries."""
    weight = empty(1, 4096, 4096, dtype=torch.bfloat16).transpose(1, 2)
    for rows in tiles.ROWS:
        left = empty(1, rows, 4096, dtype=torch.bfloat16)
        for tile in tiles.search_space(rows):
            yield partial(matmul.product, left, weight, None, tile)
        for segment, parallel in itertools.product(tiles.SEGMENTS, (False, True)):
            yield partial(matmul.product, left, weight, None, tiles.narrow(rows), segment, parallel)


def attention_launches(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> Iterator[Callable[[], Any]]:
    """Packed and padded requests, splits in turn and side by side."""
    query, key = empty(1, heads, 2048, dim, dtype=dtype), empty(1, kv_heads, 2048, dim, dtype=dtype)
    bounds = empty(9, dtype=torch.int32)
    layouts = {
        "packed": attention.Layout(8, bounds, bounds),
        "padded": attention.Layout(1, starts=empty(1, dtype=torch.int64)),
        "whole": attention.Layout(1),
    }
    for name, layout in layouts.items():
        for parallel in (False, True) if name != "padded" else (False,):
            yield lambda a=layout, p=parallel: attention.attention(query, key, key, a, parallel=p)


def row_launches(x: torch.Tensor) -> Iterator[Callable[[], Any]]:
    """Norm, softmax and reductions."""
    yield lambda: norm.fused_rms_norm(x, [x.shape[-1]], x[0], 1e-6)
    yield lambda: softmax.softmax(x, -1, False)
    yield lambda: softmax.log_softmax(x, -1, False)
    yield lambda: reduce.mean_dims(x, [-1])
    yield lambda: reduce.sum_dims(x, [-1])


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")
