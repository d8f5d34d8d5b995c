"""cuBLASLt as a way to multiply: tried at every M that may run, or not used at all.

There is no cuBLASLt here. A stand-in computes products in order, and is told for which M to add up
in another order, as a library's choice of kernels does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from detcheck.kernels.fused import proofs
from detcheck.kernels.triton import bit_class, classes, cublas, cublas_settings, linear, matmul
from detcheck.kernels.triton.classes import ProductKind, TileClass
from detcheck.kernels.triton.configs import ALL_ROWS, Table, Tile
from detcheck.kernels.triton.cublas import Library

INNER, COLUMNS = 96, 40
FEW, MANY = Tile(16, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4)
TILES: Table = ((64, FEW), (256, MANY), (ALL_ROWS, MANY))


def kind(*, biased: bool = False) -> ProductKind:
    return ProductKind(
        INNER, COLUMNS, torch.bfloat16, transposed=True, device=torch.device("cpu"),
        library=True, biased=biased,
    )  # fmt: skip


def in_order(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Sums over K in one order, whatever the shape."""
    total = torch.zeros(len(left), right.shape[1])
    for k in range(left.shape[1]):
        total += left[:, k : k + 1].float() * right[k].float()
    return (total if bias is None else total + bias.float()).to(left.dtype)


def in_parts(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    half = left.shape[1] // 2
    parts = [
        in_order(left[:, at].float(), right[at].float(), None)
        for at in (slice(half), slice(half, None))
    ]
    return (parts[0] + parts[1] + (0 if bias is None else bias.float())).to(left.dtype)


@pytest.fixture
def split_at(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of rows at which the stand-in splits K; the test adds to it."""
    at: set[int] = set()

    def multiply(
        left: torch.Tensor, right: torch.Tensor, bias: Any, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        result = (in_parts if len(left) in at else in_order)(left, right, bias)
        return result if out is None else out.copy_(result)

    monkeypatch.setattr(cublas, "multiply", multiply)
    monkeypatch.setattr(cublas, "EVERY_M", 128)
    monkeypatch.setattr(cublas, "MOST_ROWS", 512)
    return at


def by_tiles(left: torch.Tensor, right: torch.Tensor, bias: Any, way: Any) -> torch.Tensor:
    if isinstance(way, Library):
        return matmul.product(left, right, bias, way)
    return in_order(left[0], right[0], bias)[None]


def ways_of(found: TileClass) -> dict[int, list[Any]]:
    return {limit: found.usable(limit) for limit, _ in TILES}


@pytest.mark.parametrize("biased", [False, True])
def test_a_library_without_splits_is_in_the_class(split_at: set[int], biased: bool) -> None:
    assert ways_of(TileClass(kind(biased=biased), TILES, by_tiles)) == {
        64: [FEW], 256: [Library(65, 256), MANY], ALL_ROWS: [Library(257, 512), MANY],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "limit"),
    [(65, 256), (128, 256), (192, 256), (256, 256), (320, ALL_ROWS), (512, ALL_ROWS)],
)
def test_one_number_of_rows_that_splits_its_sums_is_enough(
    split_at: set[int], rows: int, limit: int
) -> None:
    split_at.add(rows)
    found = ways_of(TileClass(kind(), TILES, by_tiles))
    assert found[limit] == [MANY]
    if rows != 256:  # both ranges may run with it
        (other,) = {256, ALL_ROWS} - {limit}
        assert len(found[other]) == 2


def test_numbers_of_rows_that_never_run_are_not_looked_at(split_at: set[int]) -> None:
    split_at.update((3, 64, 129, 255, 500, 513, 1024))
    assert all(len(found) == 2 for limit, found in ways_of_many().items() if limit > 64)


def ways_of_many() -> dict[int, list[Any]]:
    return ways_of(TileClass(kind(), TILES, by_tiles))


@pytest.mark.parametrize("above", [64, 128, 256, 1024, 2048])
@pytest.mark.parametrize("columns", [64, 4096, 128256])
def test_only_numbers_of_rows_that_were_tried_run(above: int, columns: int) -> None:
    for way in cublas.ways(columns, above, 2 * above if above < 2048 else ALL_ROWS):
        tried = set(way.rows())
        most = 2 * above if above < 2048 else 20000
        assert {way.rows_at_once(rows) for rows in range(above + 1, most + 1)} <= tried


def test_it_is_not_asked_for_few_rows_or_for_results_that_fill_the_memory() -> None:
    assert cublas.ways(4096, 0, 16) == cublas.ways(4096, 32, 64) == []
    assert cublas.ways(4096, 64, 128) == [Library(65, 128)]
    assert cublas.ways(128256, 1024, 2048) == [Library(1025, 2048)]
    assert cublas.ways(128256, 2048, ALL_ROWS) == []


@pytest.mark.parametrize(
    ("rows", "left_over"),
    [(65, 0), (129, 1), (192, 0), (300, 44), (512, 0), (577, 0), (700, 60), (1089, 0), (1072, 48)],
)
@pytest.mark.parametrize("biased", [False, True])
def test_rows_that_do_not_fit_one_call_are_a_product_of_their_own(
    split_at: set[int], monkeypatch: pytest.MonkeyPatch, rows: int, left_over: int, biased: bool
) -> None:
    rest: list[int] = []

    def multiplied(left: torch.Tensor, right: torch.Tensor, bias: Any) -> torch.Tensor:
        rest.append(left.shape[1])
        return in_order(left[0], right[0], bias)[None]

    monkeypatch.setattr(matmul, "multiplied", multiplied)
    left, right = torch.randn(1, rows, 24).bfloat16(), torch.randn(1, 24, 8).bfloat16()
    bias = torch.randn(8).bfloat16() if biased else None
    out = matmul.product(left, right, bias, Library(65, 512))
    assert torch.equal(out[0], in_order(left[0], right[0], bias))
    assert rest == ([left_over] if left_over else [])


def test_the_fastest_way_of_the_class_is_taken(split_at: set[int]) -> None:
    found = TileClass(kind(), TILES, by_tiles)
    library, few = Library(65, 256), 16
    assert found.way(100, lambda way: 1.0 if way == library else 2.0) == library
    assert found.way(few, lambda way: 1.0) == FEW
    slow = TileClass(kind(), TILES, by_tiles)
    assert slow.way(100, lambda way: 2.0 if way == library else 1.0) == MANY


def test_a_way_may_be_chosen_for_rows_that_are_left_over_while_another_one_is_timed(
    split_at: set[int],
) -> None:
    """As 10,000 rows are: 8192 in one call, and 1808 by another way of the same class."""
    found = TileClass(kind(), TILES, by_tiles)
    chosen: list[Any] = []

    def time(way: Any) -> float:
        chosen.append(found.way(100, lambda way: 1.0))
        return 1.0

    choosing = threading.Thread(target=found.way, args=(600, time), daemon=True)
    choosing.start()
    choosing.join(20)
    assert not choosing.is_alive()
    assert chosen == [Library(65, 256)] * 2


def test_the_operands_of_a_vocabulary_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 they would take twice the memory of the weight, beside it."""
    made: list[int] = []
    randn = torch.randn

    def counted(*shape: Any, **on: Any) -> torch.Tensor:
        made.append(randn(*shape, **on).numel())
        return randn(*shape, **on)

    monkeypatch.setattr(torch, "randn", counted)
    monkeypatch.setattr(classes, "COLUMNS_AT_ONCE", 16)
    _, right = classes.cancelling_operands(kind(), 1, COLUMNS)
    assert right.shape == (1, INNER, COLUMNS)
    assert max(made) == 16 * INNER
    sums = right[0].float().abs().sum(0)
    assert len(sums.unique()) == COLUMNS  # no part is made twice
    assert (right[0].float().sum(0).abs() < sums / 100).all()


def test_operands_are_the_same_whatever_dtype_is_the_default() -> None:
    expected = classes.cancelling_operands(kind(), 8, COLUMNS)
    compared = proofs.random(1, 20, 64, like=expected[0])
    torch.set_default_dtype(torch.float16)
    try:
        again = classes.cancelling_operands(kind(), 8, COLUMNS)
        compared_again = proofs.random(1, 20, 64, like=expected[0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, again, expected))
    assert torch.equal(compared_again, compared)


def test_a_way_is_timed_on_the_gpu_of_its_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of another GPU's stream would not wait for it."""
    current: list[Any] = [torch.device("cuda:0")]

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(bit_class, "_timed", lambda call: call() or 1.0)
    device = torch.device("cuda:1")
    assert bit_class.milliseconds(lambda: seen.append(current[-1]), device) == 1.0
    assert seen == [device, device]
    assert len(current) == 1


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def operands(rows: int = 80, inner: int = 128, columns: int = 64) -> list[torch.Tensor]:
    x, weight = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16()
    return [each.as_subclass(OnGpu) for each in (x[None], weight.t()[None])]


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses on the CPU are aligned to 64 bytes."""
    monkeypatch.setattr(cublas, "is_enabled", lambda: True)
    monkeypatch.setattr(cublas, "ALIGNMENT_BYTES", 16)


@pytest.mark.usefixtures("enabled")
def test_which_operands_it_is_tried_for() -> None:
    left, right = operands()
    bias = torch.randn(64).bfloat16()
    assert cublas.fits(left, right, None)
    assert cublas.fits(left, right, bias)
    assert classes.classes(left, right, matmul.product, bias).kind.library
    refused: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {
        "on the CPU": (left.as_subclass(torch.Tensor), right, None),
        "few rows": (left[:, :64], right, None),
        "a slice": (left[..., :120], right[:, :120], None),
        "an address": (left.flatten()[8 * 128 + 4 :][: 71 * 128].view(1, 71, 128), right, None),
        "a plain right-hand side": (left, right.contiguous(), None),
        "N": (left, right[..., :63], None),
        "float32": (left.float(), right.float(), None),
        "a bias a row": (left, right, bias.expand(80, 64)),
        "a column as the bias": (left, right, torch.randn(64, 8).bfloat16()[:, 0]),
        "a wider bias": (left, right, bias.float()),
        "a batch": (left.expand(2, -1, -1), right.expand(2, -1, -1), None),
    }
    assert {why: cublas.fits(*each) for why, each in refused.items()} == dict.fromkeys(
        refused, False
    )


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only deterministic algorithms are wanted, and no workspace is set."""
    monkeypatch.delenv(cublas_settings.WORKSPACE, raising=False)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("enabled", "deterministic")
def test_it_is_not_asked_if_pytorch_would_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among deterministic algorithms it needs a workspace of a fixed size."""
    assert not cublas.fits(*operands(), None)
    for config, fits in ((":4096:8", True), (":16:8", True), (":4096:2", False)):
        monkeypatch.setenv(cublas_settings.WORKSPACE, config)
        assert cublas.fits(*operands(), None) is fits


def test_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas_settings, "is_available", lambda: True)
    for value, expected in (("", True), ("triton", False)):
        cublas.is_enabled.cache_clear()
        monkeypatch.setenv(cublas.VARIABLE, value)
        assert cublas.is_enabled() is expected
    cublas.is_enabled.cache_clear()


@pytest.mark.usefixtures("enabled", "deterministic")
def test_a_kept_layer_is_computed_otherwise_if_pytorch_would_refuse_it(
    split_at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when deterministic algorithms are asked for after the layer was kept."""
    x, weight = torch.randn(80, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    other = torch.empty(80, 24).bfloat16()
    kept = cublas.KeptProduct(x[None], 24, (80, 24), lambda *given: other)
    assert kept(x, weight, None) is other
    monkeypatch.setenv(cublas_settings.WORKSPACE, ":4096:8")
    assert torch.equal(kept(x, weight, None), in_order(x, weight.t(), None))


@pytest.mark.usefixtures("enabled")
def test_a_kept_layer_serves_operands_at_other_addresses(
    split_at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an address that was not tried, it is computed as if nothing was kept."""
    monkeypatch.setattr(linear, "_kept", {})
    monkeypatch.setattr(matmul, "choice", lambda *operands: Library(65, 512))
    x, weight, bias = torch.randn(80, 64).bfloat16(), torch.randn(24, 64), torch.randn(24)
    weight, bias = weight.bfloat16(), bias.bfloat16()
    whole = torch.empty(80 * 64 + 4).bfloat16()
    moved = whole[4:].view(80, 64).copy_(x)
    elsewhere: list[bool] = []
    monkeypatch.setattr(
        matmul, "multiplied", lambda *given: elsewhere.append(True) or in_order(
            given[0][0], given[1][0], given[2]
        )[None],
    )  # fmt: skip
    with torch.inference_mode():
        for each, count in ((x, 0), (x.clone(), 0), (moved, 1)):
            out = linear.linear(each, weight, bias)
            assert torch.equal(out, in_order(x, weight.t(), bias))
            assert len(elsewhere) == count
