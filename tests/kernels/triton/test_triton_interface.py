"""transformers' attention interface for tensors on a GPU: padded, packed, any mask."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from under_test import DEVICE, INTERPRETED, attention, random

from detcheck.kernels.attention import attention as interface
from detcheck.kernels.triton import in_order, launch


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU. Kernels read it in Triton's interpreter."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is made the current one, and no shape of the kernel is timed."""
    if INTERPRETED:
        for module in (launch, in_order):
            monkeypatch.setattr(module, "on_device", lambda tensor: nullcontext())
        monkeypatch.setattr(attention, "milliseconds", lambda call: 1.0)


def states(length: int, *, rows: int = 1, queries: int | None = None) -> list[torch.Tensor]:
    """Query, key and value of the last `queries` of `length` tokens."""
    parts = [random(i, rows, heads, length, 16) for i, heads in enumerate((4, 2, 2))]
    parts[0] = parts[0][:, :, -(queries or length) :]
    return [x.as_subclass(OnGpu) if INTERPRETED else x for x in parts]


def attend(given: list[torch.Tensor], mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
    out, _ = interface(torch.nn.Module(), *given, mask, scaling=0.25, **kwargs)
    return out.as_subclass(torch.Tensor)


def stock(given: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    query, key, value = (x.as_subclass(torch.Tensor).double() for x in given)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.25, enable_gqa=True
    ).transpose(1, 2)


def causal(length: int, window: int | None = None) -> torch.Tensor:
    at = torch.arange(length, device=DEVICE)
    seen = at <= at[:, None]
    return seen if window is None else seen & (at > at[:, None] - window)


@pytest.mark.parametrize("window", [None, 7])
def test_a_batch_without_a_mask(window: int | None) -> None:
    given = states(20, rows=2)
    positions = torch.arange(20, device=DEVICE)[None]
    out = attend(given, sliding_window=window, position_ids=positions)
    torch.testing.assert_close(out, stock(given, causal(20, window)).float(), rtol=1e-4, atol=1e-5)
    last = [given[0][:, :, -1:], *given[1:]]
    decoded = attend(last, sliding_window=window, position_ids=positions[:, -1:])
    assert torch.equal(decoded[:, 0], out[:, -1])


@pytest.mark.parametrize("window", [None, 7])
def test_packed_requests(window: int | None) -> None:
    given = states(30)
    bounds = torch.tensor([0, 20, 30], device=DEVICE, dtype=torch.int32)
    positions = torch.tensor([[*range(20), *range(10)]], device=DEVICE)
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_k": 20}
    out = attend(given, sliding_window=window, position_ids=positions, **lengths)
    mask = torch.block_diag(causal(20, window), causal(10, window)).bool()
    torch.testing.assert_close(out, stock(given, mask).float(), rtol=1e-4, atol=1e-5)
    alone = attend([x[:, :, 20:] for x in given], sliding_window=window)
    assert torch.equal(alone, out[:, 20:])


def test_a_row_whose_mask_is_no_interval_is_written_out_and_the_others_are_not() -> None:
    given = states(12, rows=2)
    odd = causal(12)
    odd[5:, 3] = False
    mask = torch.stack((odd, causal(12)))[:, None]
    out = attend(given, mask)
    torch.testing.assert_close(out, stock(given, mask).float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(attend([x[1:] for x in given], mask[1:]), out[1:])
    assert torch.equal(attend([x[:1] for x in given], mask[:1]), out[:1])


def test_attention_in_both_directions_and_biases() -> None:
    given = states(12, rows=2)
    everything = torch.ones(12, 12, dtype=torch.bool, device=DEVICE)
    out = attend(given, is_causal=False)
    torch.testing.assert_close(out, stock(given, everything).float(), rtol=1e-4, atol=1e-5)
    bias = random(9, 1, 4, 12, 12)
    out = attend(given, position_bias=bias)
    mask = bias.double().masked_fill(~causal(12), -torch.inf)
    torch.testing.assert_close(out, stock(given, mask).float(), rtol=1e-4, atol=1e-5)
