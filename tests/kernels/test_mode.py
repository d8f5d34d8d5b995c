"""The mode nests, survives exceptions, and proves what it did."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AttentionInterface

import detcheck
from detcheck.errors import UsageError
from detcheck.kernels import mode as mode_module
from detcheck.kernels import self_check as self_check_module
from detcheck.kernels.mode import active_families, batch_invariant
from detcheck.kernels.self_check import self_check
from detcheck.kernels.settings import OP_FAMILIES
from detcheck.kernels.triton import self_check as cuda_self_check

LEFT = torch.randn(9, 1536, generator=torch.Generator().manual_seed(3))
WEIGHT = torch.randn(576, 1536, generator=torch.Generator().manual_seed(4))


def invariant() -> bool:
    """True if a row alone has the same bits as in its batch, under the kernels that are on now."""
    return torch.equal(F.linear(LEFT[:1], WEIGHT), F.linear(LEFT, WEIGHT)[:1])


def test_stock_ops_come_back_afterwards() -> None:
    stock = AttentionInterface._global_mapping["sdpa"]
    assert not invariant()
    with batch_invariant():
        assert invariant()
        assert AttentionInterface._global_mapping["sdpa"] is not stock
    assert not invariant()
    assert AttentionInterface._global_mapping["sdpa"] is stock
    assert active_families() == ()


def test_nested_modes_stay_on_until_the_last_one_ends() -> None:
    with batch_invariant():
        with batch_invariant(["matmul"]) as inner:
            assert invariant()
        assert inner.proof().overrides["aten::linear"] == 2
        assert invariant()
        assert active_families() == OP_FAMILIES
    assert not invariant()


def test_modes_may_end_in_any_order() -> None:
    first, second = batch_invariant(["matmul"]), batch_invariant(["matmul"])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert invariant()
    second.__exit__(None, None, None)
    assert not invariant()


def test_an_exception_restores_the_stock_ops() -> None:
    with pytest.raises(RuntimeError, match="planted"), batch_invariant():
        raise RuntimeError("planted")
    assert not invariant()
    assert active_families() == ()


def test_a_mode_that_fails_to_start_leaves_the_mode_around_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def install(family: str, calls: Counter[str]) -> None:
        raise RuntimeError("planted")

    with batch_invariant(["matmul"]):
        monkeypatch.setattr(mode_module, "install", install)
        with pytest.raises(RuntimeError, match="planted"), batch_invariant(["norm", "matmul"]):
            pass
        assert active_families() == ("matmul",)
        assert invariant()
    assert not invariant()


def test_the_mode_holds_in_other_threads() -> None:
    seen = []
    with batch_invariant():
        thread = threading.Thread(target=lambda: seen.append(invariant()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_proof_counts_only_what_ran_inside() -> None:
    F.linear(LEFT, WEIGHT)
    with batch_invariant() as mode:
        assert mode.proof().overrides["aten::mm"] == 0
        torch.mm(LEFT, WEIGHT.t())
        assert mode.proof().overrides["aten::mm"] == 1
    F.linear(LEFT, WEIGHT)
    proof = mode.proof()
    assert {op: calls for op, calls in proof.overrides.items() if calls} == {"aten::mm": 1}
    assert {"aten::linear", "aten::bmm", "transformers::sdpa"} < set(proof.overrides)
    assert proof.self_check == "passed"
    assert proof.idle_families == OP_FAMILIES[1:]


def test_a_subset_leaves_the_rest_stock() -> None:
    with batch_invariant(["attention"]) as mode:
        assert not invariant()
    assert mode.proof().families == ("attention",)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UsageError, match="known are matmul"), batch_invariant(["magic"]):
        pass


def test_a_mode_without_families_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one op family"), batch_invariant([]):
        pass


def test_one_family_may_be_named_by_itself() -> None:
    with batch_invariant("matmul") as mode:
        assert invariant()
    assert mode.proof().families == ("matmul",)


def test_the_self_check_finds_stock_ops_left_on() -> None:
    """Others' modes had this hole: they say that they are enabled while stock kernels run."""
    assert "alone" in self_check({"matmul": Counter()})


def test_the_self_check_finds_an_override_that_is_not_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mode_module, "install", lambda family, calls: lambda: None)
    with batch_invariant(["attention"]) as mode:
        assert mode.proof().self_check != "passed"
    assert active_families() == ()


def test_operands_that_are_kept_are_in_float32() -> None:
    """Models are loaded while another dtype is the default."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = self_check_module.normal.__wrapped__(1, 2, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.dtype == torch.float32


def test_operands_that_are_kept_are_those_of_no_other_mode() -> None:
    """A mode may first be entered in inference, or while tensors are fake."""
    kept = (self_check_module.normal.__wrapped__, cuda_self_check._on.__wrapped__)
    with torch.inference_mode(), FakeTensorMode():
        made = [kept[0](1, 2, 3), kept[1]("cpu", 1, 2, 3), kept[1]("meta", 1, 2, 3)]
    assert [type(each) for each in made] == [torch.Tensor] * 3
    assert not any(each.is_inference() for each in made)


def test_the_public_name_is_the_same_mode() -> None:
    assert detcheck.batch_invariant is batch_invariant
