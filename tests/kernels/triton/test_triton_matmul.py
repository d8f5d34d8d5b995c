"""Triton's matrix products: right, and each row the same bits in every call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import Parameter
from under_test import (
    DEVICE,
    DOT_DTYPES,
    INTERPRETED,
    classes,
    configs,
    in_segments,
    matmul,
    random,
    rows_differ,
)

TILES = {"hopper": configs.HOPPER, "ampere": configs.AMPERE, "float32": configs.FLOAT32}


def weight_of(seed: int, columns: int, inner: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """(K, N), as the transpose of a linear layer's weight or plain."""
    if layout == "linear":
        return random(seed, columns, inner, dtype=dtype).t()
    return random(seed, inner, columns, dtype=dtype)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["linear", "plain"])
@pytest.mark.parametrize(("inner", "columns"), [(64, 64), (70, 50), (257, 130)])
def test_a_row_is_the_same_in_every_call(
    dtype: torch.dtype, layout: str, inner: int, columns: int
) -> None:
    weight = weight_of(1, columns, inner, dtype, layout)
    assert rows_differ(lambda x: matmul.mm(x, weight), random(2, 40, inner, dtype=dtype)) == []


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 65, 129, 513])
def test_boundaries_of_the_tiles(rows: int) -> None:
    left, weight = random(3, 520, 96), random(4, 96, 40)
    assert torch.equal(matmul.mm(left[:rows], weight), matmul.mm(left, weight)[:rows])


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 1, 7), (5, 70, 33), (65, 200, 96)])
def test_products_are_right(dtype: torch.dtype, rows: int, inner: int, columns: int) -> None:
    left, right = random(5, rows, inner, dtype=dtype), random(6, inner, columns, dtype=dtype)
    bias = random(7, columns, dtype=dtype)
    expected = left.double() @ right.double()
    tolerance = {"rtol": torch.finfo(dtype).eps * 8, "atol": torch.finfo(dtype).eps * 64}
    torch.testing.assert_close(matmul.mm(left, right), expected.to(dtype), **tolerance)
    with_bias = matmul.addmm(bias, left, right)
    torch.testing.assert_close(with_bias, (expected + bias.double()).to(dtype), **tolerance)
    scaled = matmul.addmm(bias, left, right, beta=0.5, alpha=2)
    torch.testing.assert_close(
        scaled, (2 * expected + bias.double() / 2).to(dtype), rtol=1e-2, atol=1e-2
    )


def test_float32_is_not_tf32() -> None:
    """TF32 keeps 10 bits of the operands: 1 + 2^-12 would be 1."""
    left = torch.full((16, 64), 1 + 2**-12, device=DEVICE)
    assert torch.equal(matmul.mm(left, torch.eye(64, device=DEVICE)), left)


def test_batched_products_are_their_parts() -> None:
    left, right = random(8, 3, 20, 48), random(9, 3, 48, 24)
    together, by_weight = matmul.bmm(left, right), matmul.bmm(left, Parameter(right))
    for index in range(3):
        part = slice(index, index + 1)
        assert torch.equal(together[part], matmul.bmm(left[part], right[part]))
        assert torch.equal(by_weight[index], matmul.mm(left[index], right[index]))
    bias = random(10, 24)
    assert torch.equal(matmul.baddbmm(bias, left, right), together + bias)
    torch.testing.assert_close(matmul.baddbmm(bias, left, Parameter(right)), by_weight + bias)


def test_more_keys_do_not_change_the_scores_of_the_others() -> None:
    """As with padding behind the keys; a bias on top makes no difference."""
    queries, keys = random(8, 2, 5, 48), random(9, 2, 48, 300)
    scores = matmul.bmm(queries, keys)
    biased = matmul.baddbmm(scores.new_ones(1), queries, keys)
    assert torch.equal(matmul.bmm(queries, keys[..., :37]), scores[..., :37])
    fewer = matmul.baddbmm(scores.new_ones(1), queries, keys[..., :37])
    assert torch.equal(fewer, biased[..., :37])


@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0)])
def test_empty_products(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = random(1, rows, inner), random(2, inner, columns)
    assert torch.equal(matmul.mm(left, right), left @ right)
    bias = random(3, columns)
    assert torch.equal(matmul.addmm(bias, left, right), torch.addmm(bias, left, right))


def test_other_dtypes_run_as_stock() -> None:
    left = torch.arange(6, device="cpu").view(2, 3)
    assert torch.equal(matmul.mm(left, left.t()), left @ left.t())


def test_sums_through_descriptors_are_the_same() -> None:
    left = random(1, 1, 150, 256, dtype=torch.float16)
    right = random(2, 1, 96, 256, dtype=torch.float16).transpose(1, 2)
    tile = configs.Tile(128, 128, 64, 8, 4)
    expected = matmul.product(left, right, None, tile)
    for persistent in (False, True):
        through = replace(tile, descriptors=True, persistent=persistent)
        assert torch.equal(matmul.product(left, right, None, through), expected)


def test_the_same_check_catches_a_split_that_depends_on_m() -> None:
    """What not to do: cut K if rows are few, to keep the device busy."""
    tile = configs.FLOAT32[-1][1]
    kind = classes.ProductKind(256, 64, torch.float32, transposed=True, device=torch.device(DEVICE))
    left, right = classes.cancelling_operands(kind)

    def by_rows(x: torch.Tensor) -> torch.Tensor:
        multiply = in_segments if len(x) <= 2 else matmul.product
        return multiply(x[None], right, None, tile)[0]

    assert "batch-size 17" in rows_differ(by_rows, left[0])
    # Interpreted, a tile's product is numpy's, which on some CPUs depends on a row's place in it.
    allowed = {"position"} if INTERPRETED else set()
    whole = rows_differ(lambda x: matmul.product(x[None], right, None, tile)[0], left[0])
    assert set(whole) <= allowed


def test_a_tile_of_another_class_is_replaced() -> None:
    """A tile whose sums are cut differently is found by experiment and not used."""
    kind = classes.ProductKind(256, 64, torch.float32, transposed=True, device=torch.device(DEVICE))
    odd, good = configs.Tile(16, 64, 32, 4, 2), configs.Tile(32, 64, 32, 4, 2)
    tiles = ((16, odd), (64, good), (configs.ALL_ROWS, configs.FLOAT32[-1][1]))

    def multiply(left, right, bias, tile):
        product = in_segments if tile == odd else matmul.product
        return product(left, right, bias, configs.FLOAT32[-1][1])

    found = classes.TileClass(kind, tiles, multiply)
    assert not found.agrees(odd)
    assert found.way(1) == found.way(64) == good
    assert found.way(65) == tiles[-1][1]


def test_of_the_tiles_in_the_class_the_fastest_is_used() -> None:
    """Alternatives for one range of M are timed once; a tile that does not run is left out."""
    kind = classes.ProductKind(256, 64, torch.float32, transposed=True, device=torch.device(DEVICE))
    broken, slow, fast = (configs.Tile(16, 64, 32, 4, stages) for stages in (2, 3, 4))
    last = configs.FLOAT32[-1][1]
    tiles = ((16, broken), (16, slow), (16, fast), (configs.ALL_ROWS, last))
    timed = []

    def multiply(left, right, bias, tile):
        if tile == broken:
            raise RuntimeError("out of resources")
        return matmul.product(left, right, bias, last)

    def time(tile: configs.Tile) -> float:
        timed.append(tile)
        return tile.num_stages / 10 if tile == slow else 0.1

    found = classes.TileClass(kind, tiles, multiply)
    assert found.way(1, time) == found.way(16, time) == fast
    assert timed == [slow, fast]
    assert classes.TileClass(kind, tiles, multiply).way(1) == slow
    assert found.way(17, time) == last


def test_tiles_by_descriptors_serve_only_what_the_copy_unit_takes() -> None:
    left, weight = random(1, 1, 300, 72, dtype=torch.float16), random(2, 40, 72).half().t()[None]
    assert classes.classes(left, weight, matmul.product).kind.descriptors
    for other_left, other in (
        (left, weight.contiguous()),
        (left[:, :, :71], weight[:, :71]),
        (left.expand(2, -1, -1), weight.expand(2, -1, -1)),
    ):
        kind = classes.classes(other_left, other, matmul.product).kind
        assert not kind.descriptors
    plain = classes.classes(left, weight.contiguous(), matmul.product)
    assert not any(tile.descriptors for tile in plain.usable(configs.ALL_ROWS))


@pytest.mark.parametrize("name", TILES)
def test_each_table_is_in_growing_order(name: str) -> None:
    tiles = TILES[name]
    assert all(tile.block_k % tiles[-1][1].block_k == 0 for _, tile in tiles)
    assert [limit for limit, _ in tiles] == sorted(limit for limit, _ in tiles)
    assert tiles[-1][0] == configs.ALL_ROWS
    assert not tiles[-1][1].descriptors


@pytest.mark.parametrize("name", TILES)
def test_every_tile_is_right(name: str) -> None:
    dtype = torch.float32 if name == "float32" else torch.float16
    left, bias = random(1, 1, 150, 136, dtype=dtype), random(3, 300, dtype=dtype)
    right = random(2, 1, 300, 136, dtype=dtype).transpose(1, 2)
    for tile in {tile for _, tile in TILES[name]}:
        for added in (None, bias):
            expected = left.double() @ right.double() + (0 if added is None else bias.double())
            torch.testing.assert_close(
                matmul.product(left, right, added, tile), expected.to(dtype), rtol=2e-3, atol=4e-2
            )
