"""PyTorch's settings of its libraries for products: what is set for a product, and set back."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from detcheck.kernels import overrides
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.triton import cublas, cublas_settings

IN_FLOAT16 = "adds up in float16"


class Settings:
    """Stands in for PyTorch's settings of its libraries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library: Any = torch._C._BlasBackend.Cublas
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        self.now: dict[str, Any] = {"bf16": (True, True), "fp16": (True, True)}
        monkeypatch.setattr(torch._C, "_get_blas_preferred_backend", lambda: self.library)
        monkeypatch.setattr(
            torch._C, "_set_blas_preferred_backend", lambda to: setattr(self, "library", to)
        )
        for name in tuple(self.now):
            stem = f"cublas_allow_{name}_reduced_precision_reduction"
            monkeypatch.setattr(torch._C, f"_get_{stem}", lambda n=name: self.now[n])
            monkeypatch.setattr(
                torch._C, f"_set_{stem}", lambda *to, n=name: self.now.__setitem__(n, to)
            )
        self.now[IN_FLOAT16] = False
        stem = "cublas_allow_fp16_accumulation"
        monkeypatch.setattr(torch._C, f"_get_{stem}", lambda: self.now[IN_FLOAT16])
        monkeypatch.setattr(
            torch._C, f"_set_{stem}", lambda to: self.now.__setitem__(IN_FLOAT16, to)
        )


def test_splits_are_off_inside_and_what_they_were_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(monkeypatch)
    settings.now["fp16"] = (False, True)
    before = cublas_settings.state()
    assert cublas_settings.is_available()
    with cublas_settings.without_splits():
        assert cublas_settings.is_set()
        with cublas_settings.without_splits():
            assert cublas_settings.is_set()
        assert cublas_settings.is_set()
    assert cublas_settings.state() == before
    with pytest.raises(KeyError), cublas_settings.without_splits():
        raise KeyError
    assert cublas_settings.state() == before
    assert not cublas_settings.is_set()


def test_a_product_is_never_made_with_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also outside of a mode, which sets them for all products."""
    Settings(monkeypatch)
    seen: list[bool] = []

    def multiply(*operands: Any) -> torch.Tensor:
        seen.append(cublas_settings.is_set())
        return torch.empty(0)

    monkeypatch.setattr(cublas, "_multiply", multiply)
    x = torch.empty(2, 2)
    cublas.multiply(x, x, None)
    with cublas_settings.without_splits():
        cublas.multiply(x, x, None)
    assert seen == [True, True]
    assert not cublas_settings.is_set()


def test_products_that_change_the_settings_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outside of a mode. Otherwise the first one that ends lets the other split its sums."""
    Settings(monkeypatch)
    before = cublas_settings.state()
    inside, go_on, seen = threading.Event(), threading.Event(), list[bool]()

    def multiply(*operands: Any) -> torch.Tensor:
        seen.append(cublas_settings.is_set())
        inside.set()
        assert go_on.wait(20)
        seen.append(cublas_settings.is_set())
        return torch.empty(0)

    monkeypatch.setattr(cublas, "_multiply", multiply)
    x = torch.empty(2, 2)
    threads = [threading.Thread(target=cublas.multiply, args=(x, x, None)) for _ in range(2)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    threads[1].join(0.2)
    assert seen == [True]
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert seen == [True] * 4
    assert cublas_settings.state() == before


def test_a_product_is_never_added_up_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if that is allowed after a layer was kept, while a mode is on."""
    settings = Settings(monkeypatch)
    seen: list[bool] = []

    def multiply(*operands: Any) -> torch.Tensor:
        seen.append(settings.now[IN_FLOAT16])
        return torch.empty(0)

    monkeypatch.setattr(cublas, "_multiply", multiply)
    x = torch.empty(2, 2)
    settings.now[IN_FLOAT16] = True
    with cublas_settings.without_splits():
        cublas.multiply(x, x, None)
        settings.now[IN_FLOAT16] = True
        cublas.multiply(x, x, None)
        assert settings.now[IN_FLOAT16]
    assert seen == [False, False]
    assert settings.now[IN_FLOAT16]


def test_another_version_of_pytorch_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there was a setting for splits, it was one boolean."""
    Settings(monkeypatch)
    assert cublas_settings.is_available()
    stem = "_get_cublas_allow_bf16_reduced_precision_reduction"
    monkeypatch.setattr(torch._C, stem, lambda: True)
    assert not cublas_settings.is_available()
    monkeypatch.delattr(torch._C, stem)
    assert not cublas_settings.is_available()


def test_a_pytorch_without_cuda_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Settings(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not cublas_settings.is_available()


def test_a_mode_sets_them_for_all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however many modes are on."""
    Settings(monkeypatch)
    before = cublas_settings.state()
    monkeypatch.setattr(cublas, "is_enabled", lambda: True)
    choose = overrides._without_splits

    def on_a_gpu() -> AbstractContextManager[None]:
        with monkeypatch.context() as patch:
            patch.setattr(overrides, "why_unavailable", lambda: None)
            return choose()

    monkeypatch.setattr(overrides, "_without_splits", on_a_gpu)
    with batch_invariant("matmul", pack_weights="off"):
        assert cublas_settings.is_set()
        with batch_invariant("matmul", pack_weights="off"):
            assert cublas_settings.is_set()
        assert cublas_settings.is_set()
    assert cublas_settings.state() == before
    monkeypatch.setattr(cublas, "is_enabled", lambda: False)
    with batch_invariant("matmul", pack_weights="off"):
        assert cublas_settings.state() == before
    with batch_invariant("reduce"):
        assert cublas_settings.state() == before
