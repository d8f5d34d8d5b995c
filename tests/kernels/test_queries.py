"""Queries by themselves have the same bits in any call of the stock kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sweeps import few

from detcheck.kernels.cpu import queries
from detcheck.kernels.cpu.packing import Packing, Plan, Segment, packing_of
from detcheck.kernels.cpu.queries import OneCall, attend_queries

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def states(seed: int, q_len: int, k_len: int, heads: int, kv_heads: int, dim: int) -> Any:
    """Query, key and value (length, heads, dim) in float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((q_len, heads), (k_len, kv_heads), (k_len, kv_heads))
    return [torch.randn(*shape, dim, generator=generator) for shape in shapes]


def decoded(requests: list[Any]) -> torch.Tensor:
    """One query of each request, in one packed step; returns (requests, heads, dim)."""
    query, key, value = (torch.cat(parts) for parts in zip(*requests, strict=True))
    ends = torch.tensor([0, *(len(each[1]) for each in requests)]).cumsum(0).tolist()
    packing = packing_of(tuple(range(len(requests) + 1)), tuple(ends))
    return attend_queries(query, key, value, packing.one_by_one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@few("dim", [16, 18, 33, 64, 80, 128], every=3)
@few(("heads", "kv_heads"), [(1, 1), (9, 3), (71, 1), (12, 1), (80, 2), (5, 5)], every=2)
@pytest.mark.usefixtures("two_threads")
def test_a_query_does_not_depend_on_the_others(
    dtype: torch.dtype, dim: int, heads: int, kv_heads: int
) -> None:
    lengths = (70, 1, 64, 65, 100, 80, 70)
    requests = [
        [x.to(dtype) for x in states(seed, 1, length, heads, kv_heads, dim)]
        for seed, length in enumerate(lengths)
    ]
    together = decoded(requests)
    for number, each in enumerate(requests):
        assert torch.equal(decoded([each])[0], together[number])


def test_the_same_check_catches_a_kernel_that_depends_on_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin: a kernel whose results in large calls have another last bit."""
    stock = queries._stock_flash

    def planted(query: Any, *rest: Any, **options: Any) -> Any:
        out, sums = stock(query, *rest, **options)
        return (torch.nextafter(out, out + 1) if len(query) > 2 else out), sums

    monkeypatch.setattr(queries, "_stock_flash", planted)
    requests = [states(seed, 1, 20, 9, 3, 64) for seed in range(3)]
    together = decoded(requests)
    assert not torch.equal(decoded(requests[:1])[0], together[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (71, 1)])
def test_a_prompt_query_by_query_is_what_decoding_gives(
    dtype: torch.dtype, heads: int, kv_heads: int
) -> None:
    query, key, value = (x.to(dtype) for x in states(1, 150, 150, heads, kv_heads, 64))
    prompt = attend_queries(query, key, value, packing_of((0, 150), (0, 150)).one_by_one)
    for at in (0, 1, 62, 63, 64, 127, 128, 149):
        step = packing_of((0, 1), (0, at + 1)).one_by_one
        one = attend_queries(query[at : at + 1], key[: at + 1], value[: at + 1], step)
        assert torch.equal(one[0], prompt[at])


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (12, 1), (71, 1)])
def test_results_are_those_of_the_formula(heads: int, kv_heads: int) -> None:
    query, key, value = (x.double() for x in states(2, 90, 90, heads, kv_heads, 32))
    out = attend_queries(query, key, value, packing_of((0, 90), (0, 90)).one_by_one, 0.3)
    torch.testing.assert_close(out, formula(query, key, value, 0.3))


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (12, 1), (71, 1)])
def test_gradients_are_those_of_the_formula_and_bits_those_without(
    heads: int, kv_heads: int
) -> None:
    plan = packing_of((0, 70), (0, 70)).one_by_one
    inputs = [x.double() for x in states(3, 70, 70, heads, kv_heads, 16)]
    without = attend_queries(*inputs, plan, 0.25)
    inputs = [x.requires_grad_() for x in inputs]
    out = attend_queries(*inputs, plan, 0.25)
    assert torch.equal(out, without)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).double()
    found = torch.autograd.grad(out, inputs, grad)
    expected = torch.autograd.grad(formula(*inputs, 0.25), inputs, grad)
    torch.testing.assert_close(found, expected)


def formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Causal attention, written out."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    visible = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), value)


def test_other_requests_keys_are_never_read() -> None:
    """A request of one key beside one whose values are not numbers."""
    query, key, value = states(5, 2, 30, 4, 2, 16)
    key[1:] = value[1:] = torch.nan
    out = attend_queries(query, key, value, packing_of((0, 1, 2), (0, 1, 30)).one_by_one)
    assert torch.equal(out[0], value[0].repeat_interleave(2, 0))
    assert out[1].isnan().all()


def test_requests_of_similar_length_share_a_call() -> None:
    packing = packing_of(tuple(range(5)), (0, 1, 65, 130, 145))
    assert [call.queries for call in packing.one_by_one.calls] == [(0, 1, 3), (2,)]
    assert [call.length for call in packing.one_by_one.calls] == [64, 128]


def test_a_plan_is_made_once_for_all_layers() -> None:
    assert packing_of((0, 1), (0, 7)).one_by_one is packing_of((0, 1), (0, 7)).one_by_one


def test_a_plan_made_without_gradients_serves_with_them() -> None:
    inputs = [x.requires_grad_() for x in states(6, 1, 13, 3, 1, 16)]
    with torch.inference_mode():
        plan = packing_of((0, 1), (0, 13)).one_by_one
        decoded([states(6, 1, 13, 3, 1, 16)])
    attend_queries(*inputs, plan).sum().backward()
    assert all(x.grad is not None for x in inputs)


def test_a_window_keeps_the_last_keys_of_each_query() -> None:
    plan = Packing([Segment(0, 3, 10, 8), Segment(3, 1, 18, 2)]).within(4)
    query, key, value = states(7, 4, 20, 4, 2, 16)
    out = attend_queries(query, key, value, plan)
    for at, (start, stop) in enumerate([(12, 16), (13, 17), (14, 18), (18, 20)]):
        own = Plan([Segment(0, 1, 0, stop - start)])
        one = attend_queries(query[at : at + 1], key[start:stop], value[start:stop], own)
        assert torch.equal(out[at], one[0])


PLANS = {
    "decoding": (Plan([Segment(n, 1, 70 * n, 65 + n) for n in range(3)]), True),
    "one request": (Plan([Segment(0, 1, 0, 7)]), True),
    "a prompt, whose queries share their keys": (Packing([Segment(0, 5, 0, 40)]).one_by_one, False),
    "several lengths": (Plan([Segment(0, 1, 0, 7), Segment(1, 1, 7, 100)]), False),
    "a query in no request": (Plan([Segment(0, 1, 0, 7), Segment(2, 1, 7, 7)]), False),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PLANS)
def test_one_call_gives_what_all_calls_give(name: str, dtype: torch.dtype) -> None:
    plan, served = PLANS[name]
    num_queries = 1 + max(query for call in plan.calls for query in call.queries)
    query, key, value = (each.to(dtype) for each in states(5, num_queries, 220, 6, 2, 64))
    assert OneCall.serves(plan, query, 2) == served
    if served:
        keys, values = (each.index_select(0, plan.keys) for each in (key, value))
        one_call = OneCall(plan, query, 2)
        for scale in (1.0, -0.5):  # layer after layer, in the same tile
            expected = attend_queries(query * scale, key, value, plan, 0.1)
            assert torch.equal(one_call.attend(query * scale, keys, values, 0.1), expected)
