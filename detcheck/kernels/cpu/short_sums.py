"""Products in float32 whose sums run in order, by the stock kernel: for short sums it does so too.

MKL adds the terms of a short sum one after another. It cuts a longer one into blocks, whose results
it adds up. So products of at most `MAX_INNER` terms have the bits of the loop in `in_order.py`, and
take a small part of its time. Whether this is true on this machine is found by experiment, once per
shape, strides and settings: the same products are computed in both ways. If their bits differ, the
loop remains.

A longer sum is cut here. Each part begins with the total of the parts before, times one: the
product of [I | rows] and [total; columns].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from detcheck.kernels.cpu.numerics import numerics
from detcheck.kernels.cpu.rows import CACHE_LINE_BYTES
from detcheck.kernels.cpu.stock import stock_kernel

MAX_INNER = 192
"""Terms of one call."""
MIN_INNER = 5
"""For fewer terms the loop is as fast."""
MIN_ROWS = 4
"""Fewer rows are padded: MKL sums them in another order."""
MIN_COLUMNS = 16
"""Fewer columns are padded, for the same reason."""
TILES = (64, 32, 16, 8, 4)
"""Numbers of rows that carry their totals on in one product."""
PROBED_BATCH = 5
"""Products of a call that are compared; MKL computes each by itself."""
COMPARED_ENTRIES = 16
"""Entries of a row or column that are compared; with few terms not each shows another order."""
CARRIED_ENTRIES = 1 << 19
"""Entries of the columns that are copied at once if totals are carried on: 2 MiB."""

Loop = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class CallShape:
    """Everything that the order of a call's sums may depend on."""

    left: tuple[int, int, int]
    left_strides: tuple[int, ...]
    right: tuple[int, int, int]
    right_strides: tuple[int, ...]


_in_order: dict[tuple[CallShape, tuple[object, ...]], bool] = {}
"""Whether the sums of such calls run in order."""
_stock_bmm_out = stock_kernel("bmm.out")


def multiply(left: torch.Tensor, right: torch.Tensor, loop: Loop) -> torch.Tensor | None:
    """(B, M, K) x (B, K, N) in float32, with the bits of `loop`, a product summed in order.

    None if the stock kernel does not sum in order here, for very short sums, and for long ones
    whose totals are infinite or not a number, which cannot be carried on.
    """
    batch, length, inner = left.shape
    width = right.shape[2]
    usual = type(left) is type(right) is torch.Tensor and left.dtype == torch.float32
    if not usual or inner < MIN_INNER or not batch * length * width:
        return None
    if width < min(MIN_COLUMNS, length):
        swapped = multiply(right.mT, left.mT, lambda a, b: loop(b.mT, a.mT).mT)
        return None if swapped is None else swapped.mT
    if inner <= MAX_INNER:
        left = _laid_out(left, max(length, MIN_ROWS), inner)
        total = _product(left, _laid_out(right, inner, max(width, MIN_COLUMNS)), loop)
    else:
        total = _long_sums(left, right, loop)
    return None if total is None else total[:, :length, :width]


def _laid_out(x: torch.Tensor, length: int, width: int) -> torch.Tensor:
    """`x` (B, ., .) with zeros up to this size, on a cache line, and rows or columns unbroken."""
    x = _padded(x, length, width)
    if x.mT.is_contiguous() or x.is_contiguous():
        return x.clone() if x.data_ptr() % CACHE_LINE_BYTES else x
    return x.contiguous()


def _padded(x: torch.Tensor, length: int, width: int) -> torch.Tensor:
    if x.shape[1:] == (length, width):
        return x
    return F.pad(x, (0, width - x.shape[2], 0, length - x.shape[1])).contiguous()


def _long_sums(left: torch.Tensor, right: torch.Tensor, loop: Loop) -> torch.Tensor | None:
    """The product of more than `MAX_INNER` terms; M and N are padded."""
    tile = next(size for size in TILES if size <= max(left.shape[1], MIN_ROWS))
    rows = -(-left.shape[1] // tile) * tile
    columns = max(right.shape[2], MIN_COLUMNS)
    left = _padded(left, rows, left.shape[2])
    right = _padded(right, right.shape[1], columns)
    together = max(1, CARRIED_ENTRIES // (rows // tile * MAX_INNER * columns))
    totals = []
    for few, those in zip(left.split(together), right.split(together), strict=True):
        total = _carried(few, those, tile, loop)
        if total is None or not bool(total.isfinite().all()):
            return None
        totals.append(total)
    return torch.cat(totals)


def _carried(left: torch.Tensor, right: torch.Tensor, tile: int, loop: Loop) -> torch.Tensor | None:
    """The product of a few entries, part after part; M is a multiple of `tile`."""
    first, rest = left[..., :MAX_INNER], left[..., MAX_INNER:].unflatten(1, (-1, tile))
    below = right[:, None, MAX_INNER:].expand(-1, rest.shape[1], -1, -1)
    total = _product(first.contiguous(), right[:, :MAX_INNER].contiguous(), loop)
    identity = torch.eye(tile, dtype=left.dtype, device=left.device).expand(*rest.shape[:2], -1, -1)
    step = MAX_INNER - tile
    for rows, columns in zip(rest.split(step, 3), below.split(step, 2), strict=True):
        if total is None:
            return None
        carrying = torch.cat((identity, rows), 3).flatten(0, 1)
        carried = torch.cat((total.view(*rest.shape[:3], -1), columns), 2).flatten(0, 1)
        total = _product(carrying, carried, loop)
    return None if total is None else total.view(*left.shape[:2], -1)


def _product(left: torch.Tensor, right: torch.Tensor, loop: Loop) -> torch.Tensor | None:
    """One call of the stock kernel; None if it is not known to sum in order."""
    batch = min(len(left), PROBED_BATCH)
    shape = CallShape(
        (batch, *left.shape[1:]), left.stride(), (batch, *right.shape[1:]), right.stride()
    )
    key = shape, numerics()
    if key not in _in_order:
        _in_order[key] = _sums_in_order(shape, loop)
    return _call(left, right) if _in_order[key] else None


def _call(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    out = left.new_empty((len(left), left.shape[1], right.shape[2]))
    result: torch.Tensor = _stock_bmm_out(left, right, out=out)
    return result


def _sums_in_order(shape: CallShape, loop: Loop) -> bool:
    """True if the first, a middle and the last rows and columns have the bits of the loop.

    The last columns may be few, and computed by a kernel of their own. So several products are
    compared, until each row and column has had `COMPARED_ENTRIES` entries.
    """
    generator = torch.Generator().manual_seed(0)
    entries = shape.left[0] * min(shape.left[1], shape.right[2])
    return all(_is_in_order(shape, loop, generator) for _ in range(-(-COMPARED_ENTRIES // entries)))


def _is_in_order(shape: CallShape, loop: Loop, generator: torch.Generator) -> bool:
    """The same for one product. Its terms cancel in pairs, so that most entries show an order."""
    inner = shape.left[2]
    with _disable_current_modes(), torch.device("cpu"):
        left = _random(shape.left, shape.left_strides, generator)
        right = _random(shape.right, shape.right_strides, generator)
        first, second = torch.randperm(inner, generator=generator)[: inner // 2 * 2].chunk(2)
        left[:, :, second] = left[:, :, first] * (1 + left[:, :, second] / 128)
        right[:, second] = -right[:, first]
        product = _call(left, right)
        m, n = ([0, size // 2, size - 1] for size in product.shape[1:])
        return torch.equal(product[:, m], loop(left[:, m], right)) and torch.equal(
            product[:, :, n], loop(left, right[:, :, n])
        )


def _random(
    size: tuple[int, int, int], strides: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    values = torch.empty_strided(size, strides, dtype=torch.float32)
    return values.normal_(generator=generator)
