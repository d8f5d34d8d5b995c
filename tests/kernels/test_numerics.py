"""Every setting that changes numerics changes the key of the row classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from detcheck.kernels.cpu.numerics import full_precision, numerics
from detcheck.kernels.mode import batch_invariant

Setter = Callable[[object], object]
SETTINGS: dict[str, tuple[Setter, object, object]] = {
    "threads": (torch.set_num_threads, 3, torch.get_num_threads()),
    "denormals": (torch.set_flush_denormal, True, False),
    "precision": (torch.set_float32_matmul_precision, "medium", "highest"),
    "oneDNN": (torch._C._set_mkldnn_enabled, False, True),
    "deterministic": (torch._C._set_mkldnn_deterministic, True, False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_in_the_key(name: str) -> None:
    switch, changed, usual = SETTINGS[name]
    before = numerics()
    switch(changed)
    try:
        assert numerics() != before
        assert full_precision() is (name != "precision")
    finally:
        switch(usual)
    assert full_precision()
    assert name == "precision" or numerics() == before  # PyTorch has two words for full precision


def test_a_precision_of_one_backend_alone_is_no_error_and_changes_no_row() -> None:
    x, weight = torch.randn(9, 1536), torch.nn.Parameter(torch.randn(96, 1536))
    with torch.no_grad():
        try:
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            with batch_invariant():
                whole = torch.nn.functional.linear(x, weight)
                for rows in (1, 2, 3, 5, 7):
                    assert torch.equal(torch.nn.functional.linear(x[:rows], weight), whole[:rows])
        finally:
            torch.backends.mkldnn.matmul.fp32_precision = "none"
