"""The assertion names a planted fault of each relation; an invariant function passes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

import detcheck
from detcheck.errors import UsageError
from detcheck.probes.asserts import NotBatchInvariant, assert_batch_invariant
from detcheck.probes.relations import USUAL_RELATIONS

ROWS = torch.randn(65, 96, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(96, 24, generator=torch.Generator().manual_seed(1))


def row_by_row(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([(row[None] @ WEIGHT)[0] for row in x])


def nudged(x: torch.Tensor, row: int) -> torch.Tensor:
    """One row's last element moved by one representable value."""
    out = row_by_row(x)
    out[row, -1] = torch.nextafter(out[row, -1], torch.tensor(torch.inf))
    return out


def another_each_time() -> Callable[[torch.Tensor], torch.Tensor]:
    calls = count()
    return lambda x: nudged(x, 3) if next(calls) else row_by_row(x)


def by_batch_size(x: torch.Tensor) -> torch.Tensor:
    """Splits the sum for small batches, as split-K kernels do."""
    half = x.shape[1] // 2
    if len(x) > 8:
        return row_by_row(x)
    whole = [(row[:half] @ WEIGHT[:half]) + (row[half:] @ WEIGHT[half:]) for row in x]
    return torch.stack(whole)


def by_position(x: torch.Tensor) -> torch.Tensor:
    return nudged(x, 5) if len(x) == 65 else row_by_row(x)


def by_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Scales by the largest value of the batch, as per-tensor quantisation does."""
    scale = x.abs().max() / 3
    return row_by_row(x / scale) * scale


@pytest.mark.parametrize(
    ("relation", "make"),
    [
        ("repeat", another_each_time),
        ("batch-size", lambda: by_batch_size),
        ("position", lambda: by_position),
        ("neighbours", lambda: by_neighbours),
    ],
)
def test_a_fault_of_each_relation_is_caught_and_named(relation: str, make: Any) -> None:
    with pytest.raises(NotBatchInvariant, match=f"{relation}: at batch size") as caught:
        assert_batch_invariant(make(), ROWS, relations=(relation,))
    outcome = caught.value.outcomes[0]
    assert outcome.relation == relation
    assert outcome.first is not None
    assert outcome.first.max_ulp >= 1
    assert "(float32)" in str(caught.value)


@pytest.mark.parametrize("make", [lambda: by_batch_size, lambda: by_position])
def test_only_the_broken_relations_are_named(make: Any) -> None:
    """A function that breaks one relation passes the relations that it keeps."""
    function = make()
    kept = ("repeat", "neighbours")
    assert set(assert_batch_invariant(function, ROWS, relations=kept)) == set(kept)
    with pytest.raises(AssertionError) as caught:
        assert_batch_invariant(function, ROWS)
    assert not {"repeat", "neighbours"} & {o.relation for o in caught.value.outcomes}  # type: ignore[attr-defined]


def test_the_message_names_the_row_and_the_ulps() -> None:
    def one_row(x: torch.Tensor) -> torch.Tensor:
        return nudged(x, 2) if len(x) == 4 else row_by_row(x)

    with pytest.raises(NotBatchInvariant) as caught:
        assert_batch_invariant(one_row, ROWS, relations="batch-size")
    message = str(caught.value)
    assert "at batch size 4, row 2" in message
    assert "1 of 24 elements differs by up to 1 ULP (float32)" in message


def test_an_invariant_function_passes_and_returns_the_rows_compared() -> None:
    compared = assert_batch_invariant(row_by_row, ROWS)
    assert set(compared) == set(USUAL_RELATIONS)
    assert all(rows > 8 for rows in compared.values())


def by_layout(x: torch.Tensor) -> torch.Tensor:
    return row_by_row(x) if x.is_contiguous() else nudged(x.contiguous(), 0)


def by_alignment(x: torch.Tensor) -> torch.Tensor:
    return row_by_row(x) if x.data_ptr() % 16 == 0 else nudged(x, 0)


@pytest.mark.parametrize("function", [by_layout, by_alignment])
def test_a_function_is_held_to_the_layout_if_that_is_asked(function: Any) -> None:
    assert_batch_invariant(function, ROWS)
    with pytest.raises(NotBatchInvariant, match="layout: at batch size"):
        assert_batch_invariant(function, ROWS, relations=("layout",))
    assert assert_batch_invariant(row_by_row, ROWS, relations="layout")["layout"] > 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_any_dtype_and_several_outputs(dtype: torch.dtype) -> None:
    x = (ROWS * 100).to(dtype)
    assert_batch_invariant(lambda a, b: {"sum": a + b, "pair": a[:, :2]}, x, x.flip(1))
    planted = lambda a: (a, a + (len(a) == 4))  # noqa: E731
    with pytest.raises(NotBatchInvariant, match="row 0 of output 1"):
        assert_batch_invariant(planted, x)


def test_a_function_that_writes_on_its_inputs_does_not_spoil_the_check() -> None:
    before = ROWS.clone()
    assert_batch_invariant(lambda x: x.mul_(2), ROWS)
    assert torch.equal(ROWS, before)


def test_the_sign_of_zero_is_a_difference() -> None:
    x = torch.arange(6.0).view(3, 2)
    with pytest.raises(NotBatchInvariant, match="up to 1 ULP"):
        assert_batch_invariant(lambda a: torch.where(a == 0, -a if len(a) == 1 else a, a), x)


@pytest.mark.parametrize(
    ("function", "inputs", "words"),
    [
        (row_by_row, (ROWS[:1],), "batch of 1 has nothing in it to vary"),
        (row_by_row, (ROWS[:0],), "batch of 0"),
        (row_by_row, (ROWS[:1].expand(9, -1),), "All rows of the inputs are equal"),
        (row_by_row, (), "at least one input"),
        (row_by_row, (ROWS, ROWS[:3]), "do not share a batch"),
        (row_by_row, (ROWS, 3), "not int"),
        (lambda x: x[:, :0], (ROWS,), "returned no elements"),
        (lambda x: x * torch.nan, (ROWS,), "only NaN"),
        (lambda x: x * 0 + 1, (ROWS,), "the same for every row"),
        (lambda x: x.sum(), (ROWS,), "must be the batch"),
        (lambda x: None, (ROWS,), "must return tensors"),
        (lambda x: (x, x) if len(x) == 1 else (x,), (ROWS,), "in a batch of 1 and"),
        (lambda x: x[:, :5] if len(x) == 1 else x, (ROWS,), r"float32 \(5,\) in a batch of 1"),
        (lambda x: x.double() if len(x) == 1 else x, (ROWS,), "float64"),
    ],
)
def test_a_check_that_could_not_fail_is_an_error(function: Any, inputs: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        assert_batch_invariant(function, *inputs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relations": ()}, "at least one relation"),
        ({"relations": ("magic",)}, "Unknown relation 'magic'"),
        ({"relations": ("chunking",)}, "whole requests"),
        ({"batch_sizes": (65,)}, "between 1 and 64"),
        ({"batch_sizes": ()}, "at least one batch size"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        assert_batch_invariant(row_by_row, ROWS, **options)


def test_the_stock_product_is_caught_and_the_invariant_one_passes() -> None:
    left = torch.randn(33, 1536, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(64, 1536, generator=torch.Generator().manual_seed(3))
    with pytest.raises(NotBatchInvariant, match="batch-size"):
        assert_batch_invariant(lambda x: x @ weight.t(), left)
    with detcheck.batch_invariant(["matmul"]):
        assert_batch_invariant(lambda x: x @ weight.t(), left)


def test_the_public_name() -> None:
    assert detcheck.assert_batch_invariant is assert_batch_invariant
