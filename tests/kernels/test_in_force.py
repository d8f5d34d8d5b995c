"""The context of a kernels setting, and the path of the module that computes."""

from __future__ import annotations

import pytest
import torch

from detcheck.errors import MeasurementError, UsageError
from detcheck.kernels import mode as mode_module
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.mode import active_families
from detcheck.kernels.module_path import ModulePath


def test_stock_overrides_nothing() -> None:
    with kernels_in_force("stock") as mode:
        assert mode is None
        assert active_families() == ()


def test_a_setting_is_on_inside_and_off_after() -> None:
    with kernels_in_force("batch-invariant:softmax+norm") as mode:
        assert set(active_families()) == {"softmax", "norm"}
    assert active_families() == ()
    assert mode is not None
    assert mode.proof().self_check == "passed"


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown kernels 'magic'"), kernels_in_force("magic"):
        pass


def test_a_failed_self_check_is_an_error_or_is_left_in_the_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mode_module, "install", lambda family, calls: lambda: None)
    with (
        pytest.raises(MeasurementError, match="kernels are not in force"),
        kernels_in_force("batch-invariant:softmax"),
    ):
        pass
    with kernels_in_force("batch-invariant:softmax", must_pass=False) as mode:
        assert mode is not None
        assert mode.proof().self_check != "passed"


class Inner(torch.nn.Module):
    def __init__(self, path: list[str]):
        super().__init__()
        self.path = path
        self.tracker: ModulePath | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.tracker is not None
        self.path.append(self.tracker.current)
        if x.sum() < 0:
            raise ValueError("planted")
        return x


def test_the_path_is_that_of_the_module_which_computes() -> None:
    seen: list[str] = []
    inner = Inner(seen)
    model = torch.nn.Sequential(torch.nn.Sequential(inner), torch.nn.Identity())
    inner.tracker = ModulePath(model)
    with inner.tracker.follow():
        model(torch.ones(1))
        assert inner.tracker.current == ""
        with pytest.raises(ValueError, match="planted"):
            model(-torch.ones(1))
        assert inner.tracker.current == "", "a module that fails is left as well"
    model(torch.ones(1))
    assert seen == ["0.0", "0.0", ""]
    assert not any(module._forward_hooks for module in model.modules())
