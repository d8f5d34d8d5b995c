"""The ops of scans: short convolutions and triangular systems, whose sums run in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sweeps import few
from torch.nn import functional as F

from detcheck.kernels.cpu.convolution import filtered
from detcheck.kernels.cpu.triangular import solve_triangular
from detcheck.kernels.mode import batch_invariant
from detcheck.models.tiny import config_of, shrunk, tiny_model

pytestmark = pytest.mark.usefixtures("two_threads")
CHANNELS, TAPS = 96, 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conv1d(x: torch.Tensor, padding: int = TAPS - 1) -> torch.Tensor:
    """One filter a channel, as state spaces have it, without what lies behind the last token."""
    filters, bias = random(CHANNELS, 1, TAPS, seed=1).to(x.dtype), random(CHANNELS).to(x.dtype)
    out = F.conv1d(x, filters, bias, padding=padding, groups=CHANNELS)
    return out[..., : x.shape[2]] if padding else out


def dense(x: torch.Tensor, padding: int = TAPS - 1) -> torch.Tensor:
    """Filters over all channels."""
    out = F.conv1d(x, random(CHANNELS, CHANNELS, TAPS, seed=1).to(x.dtype), padding=padding)
    return out[..., : x.shape[2]] if padding else out


def calls_that_differ(convolve: Callable[..., torch.Tensor], x: torch.Tensor) -> int:
    """Of a row alone, padding in front and decoding steps: the calls with other bits."""
    whole = convolve(x)
    calls = [(convolve(row[None].clone())[0], of_row) for row, of_row in zip(x, whole, strict=True)]
    calls.append((convolve(F.pad(x, (11, 0)))[..., 11:], whole))
    for last in (4, 20, 36):  # a decoding step sees the last few tokens
        window = x[..., last - TAPS + 1 : last + 1].clone()
        calls.append((convolve(window, padding=0)[..., 0], whole[..., last]))
    return sum(not torch.equal(ours, expected) for ours, expected in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_short_convolution_depends_on_nothing_but_its_tokens(dtype: torch.dtype) -> None:
    x = random(5, CHANNELS, 37).to(dtype)
    with batch_invariant(["matmul"]) as mode:
        assert calls_that_differ(conv1d, x) == 0
        assert mode.proof().overrides["aten::convolution"] > 0


def test_stock_convolutions_depend_on_how_they_are_called() -> None:
    """The twin: convolutions over all channels, by oneDNN."""
    assert calls_that_differ(dense, random(5, CHANNELS, 37)) > 0


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"dilation": 2}, {"padding": 2}])
def test_filtered_computes_what_the_stock_op_computes(options: dict[str, int]) -> None:
    x, filters, bias = random(2, 6, 41), random(6, 5, seed=1), random(6, seed=2)
    expected = F.conv1d(x, filters[:, None], bias, groups=6, **options)
    torch.testing.assert_close(filtered(x, filters, bias, **options), expected)
    unbiased = F.conv1d(x, filters[:, None], groups=6, **options)
    torch.testing.assert_close(filtered(x, filters, None, **options), unbiased)


def test_gradients_of_a_short_convolution_are_those_of_stock() -> None:
    grads = []
    for mode in (False, True):
        x = random(3, CHANNELS, 9).requires_grad_()
        if mode:
            with batch_invariant(["matmul"]):
                conv1d(x).square().sum().backward()
        else:
            conv1d(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])


def systems(count: int, size: int) -> torch.Tensor:
    return random(count, size, size) / size**0.5 + 2 * torch.eye(size)


Flags = dict[str, bool]
FLAGS: list[Flags] = [
    {"upper": upper, "left": left, "unitriangular": unit}
    for upper in (False, True)
    for left in (False, True)
    for unit in (False, True)
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(k for k in flags if flags[k]))
def test_systems_are_solved(flags: Flags) -> None:
    system, right = systems(3, 7), random(2, 1, 7, 7, seed=1)
    expected = torch.linalg.solve_triangular(system, right, **flags)
    torch.testing.assert_close(solve_triangular(system, right, **flags), expected)


def solved(system: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)


def columns_differ(solve: Callable[..., torch.Tensor], dtype: torch.dtype) -> bool:
    """True if a system alone, with fewer columns or at another address, gives other bits."""
    system, right = systems(6, 64).to(dtype), random(6, 64, 24, seed=1).to(dtype)
    whole = solve(system, right)
    parts = [
        torch.equal(solve(system[at : at + 1].clone(), right[at : at + 1].clone()), whole[at][None])
        for at in range(6)
    ]
    some = [torch.equal(solve(system, right[..., :n].clone()), whole[..., :n]) for n in (1, 3, 7)]
    return not all(parts + some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_system_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    with batch_invariant(["matmul"]) as mode:
        assert not columns_differ(solved, dtype)
        assert mode.proof().overrides["aten::linalg_solve_triangular"] > 0
    assert columns_differ(solved, dtype)  # the twin: stock


def test_equations_of_the_identity_in_front_change_nothing() -> None:
    system, right = systems(2, 20), random(2, 20, 8, seed=1)
    padded = torch.eye(31).repeat(2, 1, 1)
    padded[:, 11:, 11:] = system
    with batch_invariant(["matmul"]):
        expected = solved(system, right)
        assert torch.equal(solved(padded, F.pad(right, (0, 0, 11, 0)))[:, 11:], expected)


KINDS = {"qwen3_next": "one length", "mamba2": "one length", "mamba": "padding", "jamba": "padding"}


@pytest.mark.filterwarnings("ignore")
@few("name", KINDS)
def test_scans_longer_than_a_chunk_are_held(name: str) -> None:
    """Rows of 70 tokens, whose chunks have 64 or 4.

    The twins: a scan in chunks differs with padding, one token by token under stock kernels.
    """
    model = tiny_model(shrunk(config_of(name)))
    ids = torch.randint(4, 96, (3, 70), generator=torch.Generator().manual_seed(1))

    def equal(hidden: int) -> bool:
        mask = torch.ones_like(ids)
        mask[0, :hidden] = 0
        rows = model(input_ids=ids, attention_mask=mask).logits
        alone = model(input_ids=ids[:1, hidden:]).logits[0]
        return torch.equal(rows[0, hidden:], alone)

    with torch.no_grad():
        if KINDS[name] == "padding":
            with batch_invariant(model=model):
                assert equal(5)
            assert not equal(5)
        else:
            with batch_invariant(model=model):
                assert equal(0)
            with batch_invariant():
                assert not equal(5)
