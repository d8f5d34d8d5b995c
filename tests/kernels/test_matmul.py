"""A row of a product has the same bits in any batch; the same checks fail for the stock op."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from products import cancelling, rows_that_differ
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.cpu.rows import ProductShape, RowClasses
from detcheck.kernels.mode import batch_invariant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 44, 45, 63, 64, 65, 127, 128, 129, 1025)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("inner", "columns"),
    [(512, 64), (576, 192), (1024, 96), (1536, 576), (2048, 64), (4096, 40), (577, 33)],
)
def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype, inner: int, columns: int) -> None:
    left, weight = cancelling(max(ROWS), inner, columns, dtype)
    bias = torch.linspace(-1, 1, columns).to(dtype)
    with batch_invariant(["matmul"]):
        assert rows_that_differ(left, weight, None, ROWS) == 0
        assert rows_that_differ(left, weight, bias, ROWS) == 0


def test_the_same_check_catches_the_stock_op() -> None:
    left, weight = cancelling(max(ROWS), 1536, 576, torch.float32)
    assert rows_that_differ(left, weight, None, ROWS) > 0


def test_products_are_right() -> None:
    left, weight = torch.randn(37, 300, dtype=torch.float64), torch.randn(50, 300).double()
    bias = torch.randn(50).double()
    expected = left @ weight.t() + bias
    with batch_invariant(["matmul"]):
        got = F.linear(left.float(), weight.float(), bias.float())
        batched = torch.bmm(
            left.float()[None].expand(3, -1, -1), weight.float().t().expand(3, -1, -1)
        )
        scaled = torch.addmm(bias.float(), left.float(), weight.float().t(), beta=2, alpha=0.5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batched[1].double(), expected - bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        scaled.double(), (expected - bias) / 2 + 2 * bias, rtol=1e-4, atol=1e-4
    )


SLICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "last token": lambda hidden: hidden[:, -1:],
    "some tokens": lambda hidden: hidden[:, 1:3],
    "by token": lambda hidden: hidden.transpose(0, 1).contiguous().transpose(0, 1),
    "by head": lambda hidden: hidden[:, :, None].expand(-1, -1, 2, -1),
}


def biased_rows_differ(cut: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> int:
    """Of five requests, how many have other bits in the batch than alone, after a biased layer."""
    hidden = torch.randn(5, 4, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    bias = torch.linspace(-1, 1, 300).to(dtype)
    whole = F.linear(cut(hidden), weight, bias)
    alone = [F.linear(cut(hidden[at : at + 1].clone()), weight, bias)[0] for at in range(5)]
    return sum(not torch.equal(one, row) for one, row in zip(alone, whole, strict=True))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SLICES)
def test_slices_of_a_batch_do_not_matter_with_a_bias(
    name: str, dtype: torch.dtype, grad: bool
) -> None:
    """The last token of one request is contiguous in memory, the last tokens of several are not."""
    with torch.set_grad_enabled(grad), batch_invariant(["matmul"]):
        assert biased_rows_differ(SLICES[name], dtype) == 0


def test_the_same_check_catches_the_stock_layer() -> None:
    assert biased_rows_differ(SLICES["last token"], torch.bfloat16) > 0


class Packed(torch.Tensor):
    """A weight of a type of its own, as quantised models have them; it has no storage."""

    @staticmethod
    def __new__(cls, plain: torch.Tensor) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain: torch.Tensor):
        self.plain = plain

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = [x.plain if isinstance(x, Packed) else x for x in args]
        out = func(*args, **(kwargs or {}))
        return Packed(out) if func.is_view and args[0].dim() == 2 else out


def test_linear_is_called_as_stock_is() -> None:
    left, weight = torch.randn(4, 64), torch.randn(8, 64)
    with torch.no_grad(), batch_invariant(["matmul"]):
        expected = F.linear(left, weight)
        assert torch.equal(F.linear(input=left, weight=weight), expected)
        assert torch.equal(F.linear(left, weight, bias=None), expected)
        assert F.linear(left.to("meta"), weight.to("meta")).shape == (4, 8)
        for _ in range(3):  # also once such a call is known to need neither copies nor padding
            assert torch.equal(F.linear(left, Packed(weight)), expected)
    with batch_invariant(["matmul"]):
        each = torch.func.vmap(lambda row: F.linear(row[None], weight)[0])(left)
    torch.testing.assert_close(each, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own
def test_transforms_without_gradients_still_work() -> None:
    """Tensors inside a transform have no storage."""
    left, weight = torch.randn(4, 64), torch.randn(8, 64)
    expected = F.linear(left, weight)
    with torch.no_grad(), batch_invariant(["matmul"]):
        each = torch.func.vmap(lambda row: F.linear(row[None], weight)[0])(left)
        _, tangent = torch.func.jvp(lambda x: F.linear(x, weight), (left,), (left,))
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(tangent, expected)


def test_autocast_still_casts() -> None:
    left, weight = torch.randn(32, 64), torch.randn(48, 64)
    with torch.no_grad(), batch_invariant(["matmul"]):
        for _ in range(3):  # until the product is known to need neither copies nor padding
            assert F.linear(left, weight).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(left, weight).dtype == torch.bfloat16


def test_a_bias_with_factor_zero_is_not_read() -> None:
    bias = torch.full((3,), torch.nan)
    with batch_invariant(["matmul"]):
        assert torch.addmm(bias, torch.ones(2, 4), torch.ones(4, 3), beta=0).eq(4).all()


def test_a_dispatch_mode_sees_each_product() -> None:
    """A trace compares op with op. A shortcut in only one of two runs would hide ops from it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    left, weight = torch.randn(32, 64), torch.randn(48, 64)
    with torch.no_grad(), batch_invariant(["matmul"]):
        for _ in range(3):
            F.linear(left, weight)
        for seen in ([], []):
            with Names():
                F.linear(left, weight)
            assert seen == ["aten.t.default", "aten.mm.default"]


def test_gradients_are_those_of_stock() -> None:
    left = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
    stock = torch.autograd.grad(F.linear(left, weight).square().sum(), (left, weight))
    with batch_invariant(["matmul"]):
        ours = torch.autograd.grad(F.linear(left, weight).square().sum(), (left, weight))
        assert torch.autograd.gradcheck(F.linear, (left, weight))
    torch.testing.assert_close(ours, stock)


def test_empty_and_integer_products_still_work() -> None:
    with batch_invariant(["matmul"]):
        assert torch.mm(torch.zeros(0, 4), torch.ones(4, 3)).shape == (0, 3)
        assert torch.mm(torch.zeros(2, 0), torch.ones(0, 3)).eq(0).all()
        assert torch.mm(torch.zeros(2, 4), torch.ones(4, 0)).shape == (2, 0)
        bias = torch.ones(0)
        assert F.linear(torch.zeros(2, 4), torch.ones(0, 4), bias).shape == (2, 0)
        assert torch.bmm(torch.zeros(2, 3, 4), torch.ones(2, 4, 0)).shape == (2, 3, 0)
        with pytest.raises(RuntimeError, match="batch2"):
            torch.bmm(torch.zeros(2, 3, 4), torch.ones(3, 4, 5))
        ints = torch.arange(6).view(2, 3)
        assert torch.equal(torch.mm(ints, ints.t()), torch.tensor([[5, 14], [14, 50]]))


def test_row_classes_pad_numbers_of_rows_that_differ() -> None:
    """A planted kernel that sums backwards for fewer than three rows must be padded up to three."""

    def broken(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if len(left) < 3:
            return left.flip(1) @ right.flip(0)
        return torch.stack([(row[None].repeat(4, 1) @ right)[0] for row in left])

    shape = ProductShape(1536, 64, torch.float32, transposed=True, biased=False)
    classes = RowClasses(shape, broken)
    assert [classes.padded_rows(rows) for rows in (1, 2, 3, 5)] == [3, 3, 3, 5]


def test_a_difference_in_one_result_of_hundreds_is_seen() -> None:
    """In a short product in bfloat16, rounding hides all but one result of hundreds."""

    def rarely(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        out = torch.stack([(row[None].float() @ right.float())[0] for row in left])
        if len(left) < 3:
            out = torch.where(out.frexp().mantissa * 997 % 1 < 1 / 500, out * 1.01, out)
        return out.bfloat16()

    shape = ProductShape(64, 32, torch.bfloat16, transposed=True, biased=False)
    assert RowClasses(shape, rarely).padded_rows(1) == 3


@pytest.mark.sweep
def test_large_calls_in_no_class_are_cut_into_tiles() -> None:
    def large_differ(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([(row[None].repeat(4, 1) @ right)[0] for row in left])
        return rows * 1.001 if len(left) > 40 else rows

    classes = RowClasses(ProductShape(64, 8, torch.float32, True, False), large_differ)
    assert [classes.padded_rows(rows) for rows in (3, 41)] == [3, None]
    assert classes.tile_rows == 32


def test_a_product_in_which_the_position_matters_is_cut_into_single_rows() -> None:
    def by_position(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([(row[None].repeat(4, 1) @ right)[0] for row in left])
        rows[len(left) // 4 * 4 :] *= 1.001
        rows[3::4] *= 1.001
        return rows

    classes = RowClasses(ProductShape(64, 8, torch.float32, True, False), by_position)
    assert classes.padded_rows(64) is None
    assert classes.tile_rows == 1


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("inner", "columns", "dtype"),
    [
        *((inner, columns, torch.float32) for inner in (31, 131, 577) for columns in (2, 7, 9)),
        *((inner, columns, torch.bfloat16) for inner in (8, 18, 64) for columns in (1, 2, 7, 8)),
        (131, 90, torch.float64),
    ],
)
def test_products_of_few_columns_keep_the_promise(
    inner: int, columns: int, dtype: torch.dtype
) -> None:
    """In these, a stock kernel gives a row other bits if its position in the call changes."""
    left, weight = cancelling(129, inner, columns, dtype)
    bias = torch.linspace(-1, 1, columns).to(dtype)
    with batch_invariant(["matmul"]):
        for added in (None, bias):
            whole = F.linear(left, weight, added)
            for start, stop in ((1, 2), (1, 6), (7, 40), (28, 129)):
                part = F.linear(left[start:stop], weight, added)
                assert torch.equal(part, whole[start:stop])


def test_the_stock_op_does_depend_on_the_position() -> None:
    left, weight = cancelling(33, 131, 7, torch.float32)
    assert not torch.equal(F.linear(left.roll(1, 0), weight), F.linear(left, weight).roll(1, 0))


def test_misaligned_weights_keep_the_promise() -> None:
    left, weight = cancelling(65, 1536, 96, torch.float32)
    shifted = torch.empty(weight.numel() + 3)[3:].view_as(weight).copy_(weight)
    assert shifted.data_ptr() % 64
    with batch_invariant(["matmul"]):
        whole = F.linear(left, shifted)
        for rows in (1, 2, 5, 33):
            assert torch.equal(F.linear(left[:rows], shifted), whole[:rows])


COLUMNS = (1, 2, 3, 7, 11, 12, 15, 16, 17, 33, 64, 100)
LAY_OUT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows of requests": lambda x: x.t(),
    "columns": lambda x: x.t().contiguous(),
    "part of longer rows": lambda x: F.pad(x, (0, 3)).t()[:-3],
}


def columns_that_differ(
    rows: int, inner: int, dtype: torch.dtype, lay_out: Callable[[torch.Tensor], torch.Tensor]
) -> int:
    """Calls with few columns of a batch, from either end, whose bits are not those of all 129."""
    requests, weight = cancelling(129, inner, rows, torch.float64 if dtype.is_complex else dtype)
    if dtype.is_complex:
        requests, weight = (torch.complex(x, x.flip(-1)).to(dtype) for x in (requests, weight))
    whole = weight @ lay_out(requests)
    return sum(
        not torch.equal(weight @ lay_out(part.clone()), whole[:, start : start + columns])
        for columns in COLUMNS
        for start in (0, 129 - columns)
        for part in (requests[start : start + columns],)
    )


ALL_DTYPES = (*DTYPES, torch.float64, torch.complex64, torch.complex128)


@few("dtype", ALL_DTYPES, every=3, ids=str)
@few("name", LAY_OUT)
def test_columns_do_not_depend_on_their_number(name: str, dtype: torch.dtype) -> None:
    """The batch may be along N, with a plain tensor as the weight."""
    with batch_invariant("matmul"):
        for rows, inner in ((1, 577), (33, 7), (96, 131)):
            assert columns_that_differ(rows, inner, dtype, LAY_OUT[name]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_check_catches_the_stock_op_by_columns(dtype: torch.dtype) -> None:
    assert columns_that_differ(96, 131, dtype, LAY_OUT["rows of requests"]) > 0


def test_products_of_few_columns_are_as_long_as_stock_makes_them() -> None:
    left, right = torch.randn(5, 64), torch.randn(64, 3)
    with batch_invariant("matmul"):
        for bias in (torch.ones(3), torch.ones(1)):
            added = torch.addmm(bias, left, right)
            torch.testing.assert_close(added, left @ right + 1)
            assert added.is_contiguous()
        with pytest.raises(RuntimeError, match="expanded size"):
            torch.addmm(torch.ones(2), left, right)
