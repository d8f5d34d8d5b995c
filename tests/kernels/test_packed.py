"""Packed weights: one result for a row in any batch, of the weights as they are now."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from products import cancelling, rows_that_differ
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from detcheck.errors import UsageError
from detcheck.kernels.cpu import matmul, packed, packed_weight
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.mode import batch_invariant

BOTH = [torch.bfloat16, torch.float32]
ROWS = (1, 2, 3, 4, 7, 16, 17, 31, 33, 64, 65, 100, 129)
SHAPES = [(512, 64), (1536, 576), (4096, 40), (577, 33), (131, 7), (8, 1)]

pytestmark = pytest.mark.skipif(
    torch.bfloat16 not in packed_weight._dtypes(), reason="oneDNN packs no bfloat16 on this machine"
)


def operands(rows: int, inner: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Left-hand side (rows, inner), parameter (columns, inner) and bias (columns,)."""
    left, weight = cancelling(rows, inner, columns, dtype)
    return left, nn.Parameter(weight), torch.linspace(-1, 1, columns).to(dtype)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize(
    ("inner", "columns"),
    [(2048, 64), *(pytest.param(*shape, marks=pytest.mark.sweep) for shape in SHAPES)],
)
def test_rows_do_not_depend_on_the_batch(
    inner: int, columns: int, dtype: torch.dtype, grad: bool
) -> None:
    left, weight, bias = operands(max(ROWS), inner, columns, dtype)
    with torch.set_grad_enabled(grad), batch_invariant("matmul") as mode:
        assert rows_that_differ(left, weight, None, ROWS) == 0
        assert rows_that_differ(left, weight, bias, ROWS) == 0
        assert mode.proof().packed_bytes >= weight.nbytes


def test_the_same_check_catches_packed_products_without_row_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, weight, _ = operands(max(ROWS), 1536, 576, torch.bfloat16)
    every_size_fits = SimpleNamespace(fits=lambda rows: True)
    monkeypatch.setattr(packed.CLASSES, "find", lambda shape, settings: every_size_fits)
    with torch.no_grad(), batch_invariant("matmul"):
        assert rows_that_differ(left, weight, None, ROWS) == 2  # each call of one row


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 1500])
def test_products_are_right(rows: int, dtype: torch.dtype) -> None:
    left, weight = torch.randn(rows, 96).to(dtype), nn.Parameter(torch.randn(40, 96).to(dtype))
    bias = torch.randn(40).to(dtype)
    expected = left.double() @ weight.double().t() + bias.double()
    with torch.no_grad(), batch_invariant("matmul"):
        got = F.linear(left.view(rows, 1, 96), weight, bias)
    assert got.shape == (rows, 1, 40)
    exact = {"rtol": 1e-2, "atol": 1e-1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got[:, 0].double(), expected, check_dtype=False, **exact or LOOSE)


LOOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_gradients_are_those_of_stock() -> None:
    left, weight, bias = operands(5, 24, 7, torch.float32)
    inputs = (left.requires_grad_(), weight, bias.requires_grad_())
    stock = torch.autograd.grad(F.linear(*inputs).square().sum(), inputs)
    with batch_invariant("matmul") as mode:
        ours = torch.autograd.grad(F.linear(*inputs).square().sum(), inputs)
        assert mode.proof().packed_bytes
    torch.testing.assert_close(ours, stock, **LOOSE)


def test_a_trainer_computes_what_a_sampler_computes() -> None:
    left, weight, bias = operands(33, 1536, 64, torch.bfloat16)
    with batch_invariant("matmul"):
        trained = F.linear(left, weight, bias)
        with torch.inference_mode():
            sampled = torch.cat([F.linear(row[None], weight, bias) for row in left])
    assert trained.requires_grad
    assert torch.equal(trained, sampled)


def test_copies_are_freed_when_the_mode_ends() -> None:
    left, weight, _ = operands(5, 64, 48, torch.float32)
    with torch.no_grad():
        with batch_invariant("matmul") as mode:
            F.linear(left, weight)
            assert STORE.num_bytes == mode.proof().packed_bytes >= weight.nbytes
            with batch_invariant("matmul") as inner:
                F.linear(left, weight)
            assert inner.proof().packed_bytes == STORE.num_bytes > 0
        assert STORE.num_bytes == 0
    assert mode.proof().packed_bytes >= weight.nbytes
    assert mode.proof().pack_weights == "on"


def test_a_copy_is_freed_with_its_parameter() -> None:
    left, weight, _ = operands(5, 64, 48, torch.float32)
    with torch.no_grad(), batch_invariant("matmul"):
        F.linear(left, weight)
        assert STORE.num_bytes
        del weight
        gc.collect()
        assert STORE.num_bytes == 0


def test_the_operands_of_probes_are_freed_when_the_mode_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, weight, _ = operands(5, 64, 48, torch.float32)
    tables = (packed.CLASSES, matmul.CLASSES)
    for table in tables:  # no shape is known, so this one is probed
        monkeypatch.setattr(table, "_classes", {})

    def held() -> list[bool]:
        found = [classes for table in tables for classes in table._classes.values()]
        return [classes._right is not None for classes in found]

    with torch.no_grad(), batch_invariant("matmul"):
        for rows in range(1, 6):
            F.linear(left[:rows], weight)
        assert any(held())
    assert not any(held())


def test_packing_can_be_switched_off() -> None:
    left, weight, _ = operands(64, 1536, 576, torch.float32)
    with torch.no_grad(), batch_invariant("matmul") as outer:
        F.linear(left, weight)
        with batch_invariant("matmul", pack_weights="off") as mode:
            assert rows_that_differ(left[:33], weight, None, ROWS[:9]) == 0
            assert STORE.num_bytes == 0
        assert (mode.proof().pack_weights, mode.proof().packed_bytes) == ("off", 0)
        F.linear(left, weight)
        assert outer.proof().packed_bytes >= weight.nbytes


def test_another_word_is_refused() -> None:
    with (
        pytest.raises(UsageError, match="`pack_weights` must be auto or off"),
        batch_invariant(pack_weights="always"),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_dtypes_are_not_packed(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(3, 4, dtype=dtype), requires_grad=False)
    with torch.no_grad(), batch_invariant("matmul") as mode:
        assert F.linear(torch.ones(2, 4, dtype=dtype), weight).eq(4).all()
        assert mode.proof().packed_bytes == 0


@pytest.mark.parametrize("make", [lambda w: w.detach(), lambda w: w.detach().half()])
def test_tensors_that_may_be_new_on_each_call_are_not_packed(
    make: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    left, weight, _ = operands(33, 1536, 64, torch.float32)
    with torch.no_grad(), batch_invariant("matmul") as mode:
        assert rows_that_differ(make(left), make(weight), None, ROWS[:9]) == 0
        assert mode.proof().packed_bytes == 0


def test_a_parameter_without_a_version_counter_is_not_packed() -> None:
    with torch.inference_mode():
        weight = nn.Parameter(torch.randn(48, 64))
        with batch_invariant("matmul") as mode:
            F.linear(torch.randn(3, 64), weight)
            assert mode.proof().packed_bytes == 0


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
def test_precision_that_is_switched_later_gets_classes_of_its_own() -> None:
    left, weight, _ = operands(max(ROWS), 1536, 64, torch.float32)
    with torch.no_grad(), batch_invariant("matmul"):
        assert rows_that_differ(left, weight, None, ROWS) == 0
        assert rows_that_differ(left, weight.detach(), None, ROWS) == 0
        exact = F.linear(left, weight.detach())
        torch.set_float32_matmul_precision("medium")
        assert not torch.equal(F.linear(left, weight.detach()), exact)  # the switch has effect
        assert rows_that_differ(left, weight, None, ROWS) == 0
        assert rows_that_differ(left, weight.detach(), None, ROWS) == 0


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_that_are_switched_later_get_classes_of_their_own(num_threads: int) -> None:
    left, weight, _ = operands(max(ROWS), 1536, 64, torch.bfloat16)
    before = torch.get_num_threads()
    with torch.no_grad(), batch_invariant("matmul"):
        F.linear(left, weight)
        torch.set_num_threads(num_threads)
        try:
            assert rows_that_differ(left, weight, None, ROWS) == 0
        finally:
            torch.set_num_threads(before)


class Names(TorchDispatchMode):
    """Keeps the names of the ops it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_weight_packed_in_inference_mode_can_be_trained() -> None:
    left, weight, _ = operands(5, 64, 48, torch.float32)
    with batch_invariant("matmul"):
        with torch.inference_mode():
            sampled = F.linear(left, weight)
        trained = F.linear(left, weight)
        trained.sum().backward()
        assert torch.equal(F.linear(left, weight.requires_grad_(False)), sampled)
    assert torch.equal(trained, sampled)
    torch.testing.assert_close(weight.grad, left.sum(0).expand(48, -1), **LOOSE)


@pytest.mark.parametrize("packed_before", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_whoever_watches_the_dispatcher_sees_the_op_with_the_same_bits(
    grad: bool, packed_before: bool
) -> None:
    left, weight, bias = operands(5, 1536, 64, torch.bfloat16)
    with torch.set_grad_enabled(grad), batch_invariant("matmul"):
        if packed_before:
            F.linear(left, weight, bias)
        with Names() as names:
            got = F.linear(left, weight, bias)
        expected = F.linear(left, weight, bias)
    assert torch.equal(got, expected)
    assert names.seen == ["detcheck.linear.default"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own
def test_transforms_and_autocast_still_work() -> None:
    left, weight, _ = operands(4, 64, 48, torch.float32)
    expected = F.linear(left, weight)
    with torch.no_grad(), batch_invariant("matmul"):
        F.linear(left, weight)
        each = torch.func.vmap(lambda row: F.linear(row[None], weight)[0])(left)
        _, tangent = torch.func.jvp(lambda x: F.linear(x, weight), (left,), (left,))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(left, weight).dtype == torch.bfloat16
        assert F.linear(left.to("meta"), weight.to("meta")).shape == (4, 48)
    torch.testing.assert_close(each, expected, **LOOSE)
    torch.testing.assert_close(tangent, expected, **LOOSE)


def test_wrong_shapes_and_dtypes_fail_as_in_stock() -> None:
    left, weight, bias = operands(4, 64, 48, torch.float32)
    wrong = [(left[:, :9], weight, None), (left.double(), weight, None), (left, weight, bias[:5])]
    for call in wrong:
        with pytest.raises(RuntimeError) as stock, torch.no_grad():
            F.linear(*call)
        with torch.no_grad(), batch_invariant("matmul"):
            F.linear(left, weight)
            with pytest.raises(RuntimeError) as ours:
                F.linear(*call)
        assert str(ours.value) == str(stock.value)


def test_odd_shapes_still_work() -> None:
    left, weight, bias = operands(4, 64, 48, torch.float32)
    with torch.no_grad(), batch_invariant("matmul"):
        assert F.linear(left[0], weight, bias).shape == (48,)
        assert F.linear(left[:0], weight, bias).shape == (0, 48)
        assert F.linear(left.t().contiguous().t(), weight).equal(F.linear(left, weight))


@pytest.mark.parametrize(("inner", "mixed"), [("auto", False), ("off", True)])
def test_modes_that_disagree_on_packing_prove_nothing(inner: str, mixed: bool) -> None:
    """Packed products have other bits than plain ones, and the modes share one state."""
    left, weight, _ = operands(4, 64, 48, torch.bfloat16)
    with torch.no_grad(), batch_invariant("matmul") as outside:
        F.linear(left, weight)
        with batch_invariant("matmul", pack_weights=inner) as inside:
            F.linear(left, weight)
            assert ("one `pack_weights`" in inside.proof().self_check) == mixed
        F.linear(left, weight)
        assert (outside.proof().self_check != "passed") == mixed
    with torch.no_grad(), batch_invariant("matmul", pack_weights="off") as later:
        F.linear(left, weight)
        assert later.proof().self_check == "passed"
