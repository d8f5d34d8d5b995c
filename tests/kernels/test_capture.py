"""Every kernel's launcher inside a fake capture of a CUDA graph.

While a graph is captured, the host may not wait for the GPU, read a tensor, or copy from the host;
and memory must come from PyTorch's allocator. In this capture each of these fails. Tensors have no
values to read, and launches are noted instead of run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from detcheck.kernels.scores import Scores
from detcheck.kernels.triton import (
    ahead,
    attention,
    attention_layout,
    differentiable,
    grouped,
    linear,
    matmul,
    norm,
    reduce,
    requests,
    softmax,
    topk,
)

SCORES = Scores(0.1)
READS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select",
    "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
"""aten ops that bring a value, or a size that depends on values, to the host."""
FROM_THE_HOST = {"lift_fresh", "lift_fresh_copy", "lift", "pin_memory", "_pin_memory"}


class CaptureError(Exception):
    """Something that a capture does not allow."""


class Capture(TorchDispatchMode):
    """Fails on any op that reads a tensor from the host, or brings one from there."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        if name in READS or name in FROM_THE_HOST:
            raise CaptureError(f"aten::{name} in a capture")
        out = function(*args, **(kwargs or {}))
        devices = {x.device for x in (*args, out) if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            raise CaptureError(f"aten::{name} moves data between devices in a capture")
        return out


@contextmanager
def capture() -> Iterator[list[ahead.Launch]]:
    """Within this context the current stream is captured; gives the launches in it."""

    def forbidden(*_: object, **__: object) -> None:
        raise CaptureError("the host waits for the GPU in a capture")

    with pytest.MonkeyPatch.context() as patch, Capture(), ahead.noted() as launches:
        for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
            patch.setattr(owner, "synchronize", forbidden, raising=False)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        patch.setattr(linear, "observed", lambda: False)  # the mode of this test is no observer
        yield launches


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def packed(keys: int) -> Callable[[], object]:
    """Two layers of a step of eight requests."""
    query, key = empty(1, 32, 8, 128), empty(1, 8, 8 * keys, 128)
    bounds = empty(9, dtype=torch.int32)
    kwargs = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_k": keys}
    return lambda: [
        differentiable.packed_attention(query, key, key, SCORES, kwargs, layer) for layer in (0, 1)
    ]


def windowed() -> Callable[[], object]:
    """Three layers of a step of eight requests: a window, all keys, the window again."""
    query, key, bounds = empty(1, 32, 20, 128), empty(1, 8, 900, 128), empty(9, dtype=torch.int32)
    positions = empty(1, 20, dtype=torch.int64)
    kwargs = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_k": 200,
              "position_ids": positions}  # fmt: skip
    scores = Scores(0.1, softcap=30.0, sinks=empty(32))
    return lambda: [
        differentiable.packed_attention(query, key, key, scores, kwargs, layer, window)
        for layer, window in enumerate((128, None, 128))
    ]


def padded() -> Callable[[], object]:
    query, key = empty(8, 32, 1, 128), empty(8, 8, 600, 128)
    starts = empty(8, dtype=torch.int64)
    keys = differentiable.PaddedKeys(starts)
    return lambda: differentiable.padded_attention(query, key, key, keys, SCORES, None)


COPIED = matmul.Tile(128, 128, 64, 8, 4, descriptors=True)
X, WIDE, WEIGHT = empty(8, 1, 4096), empty(8, 4096, dtype=torch.float32), empty(4096)
CALLS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "linear": (lambda: linear.linear(X, empty(14336, 4096)), ["product_kernel"]),
    "linear, cut sums": (
        lambda: linear.linear(X, empty(1024, 4096), empty(1024)), ["product_kernel"]
    ),
    "linear, descriptors": (
        lambda: matmul.product(empty(1, 512, 512), empty(1, 512, 512).mT, None, COPIED),
        ["descriptor_kernel"],
    ),
    "mm": (lambda: matmul.mm(X[:, 0], empty(4096, 4096)), ["product_kernel"]),
    "bmm": (lambda: matmul.bmm(empty(3, 8, 64), empty(3, 64, 32)), ["ordered_product_kernel"]),
    "softmax over keys": (
        lambda: softmax.softmax(empty(2, 3, 8, 64), -1, False), ["ordered_softmax_kernel"]
    ),
    "experts": (
        lambda: grouped.grouped_mm(X[:, 0], empty(4, 4096, 96), empty(4, dtype=torch.int32)),
        ["grouped_kernel"],
    ),
    "packed attention": (packed(200), ["schedule_kernel", "attention_kernel", "attention_kernel"]),
    "packed attention, splits": (
        packed(600),
        ["schedule_kernel", *(2 * ["attention_kernel", "merge_kernel"])],
    ),
    "windows": (
        windowed(),
        [*(2 * ["schedule_kernel", "attention_kernel"]), "attention_kernel"],
    ),
    "a window without a mask": (
        lambda: requests.attend_padded(
            empty(8, 32, 1, 128), *(2 * (empty(8, 8, 600, 128),)), None, SCORES,
            requests.Window(512, empty(1, 1, dtype=torch.int64)),
        ),
        ["attention_kernel", "merge_kernel"],
    ),
    "padded attention": (padded(), ["attention_kernel", "merge_kernel"]),
    "rms norm": (lambda: norm.fused_rms_norm(X, [4096], WEIGHT, 1e-6), ["rms_norm_kernel"]),
    "layer norm": (
        lambda: norm.layer_norm(X, [4096], WEIGHT, WEIGHT, 1e-6), ["layer_norm_kernel"]
    ),
    "mean": (lambda: reduce.mean_dims(WIDE, [-1], True), ["row_sum_kernel"]),
    "sum of 8": (lambda: reduce.sum_dims(WIDE[:, :8], [1]), ["short_sum_kernel"]),
    "prod": (lambda: reduce.prod_dim(WIDE, -1), ["row_product_kernel"]),
    "logsumexp": (lambda: reduce.logsumexp(WIDE, [-1]), ["row_logsumexp_kernel"]),
    "norm": (lambda: reduce.vector_norm(WIDE, 2, [-1]), ["row_sum_kernel"]),
    "norm of order 3": (lambda: reduce.vector_norm(WIDE, 3, [-1]), ["row_sum_kernel"]),
    "topk": (lambda: topk.topk(WIDE[:, :128].contiguous(), 8), ["topk_kernel"]),
    "softmax": (lambda: softmax.softmax(WIDE, -1, False), ["softmax_kernel"]),
}  # fmt: skip
"""What is called, and the launches that the capture must hold."""


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_can_be_captured(name: str) -> None:
    call, expected = CALLS[name]
    with capture() as launches:
        call()
    assert [launch.name for launch in launches] == expected


FAULTS: dict[str, Callable[[], object]] = {
    "item": lambda: WIDE.sum().item(),
    "tolist": lambda: empty(3).tolist(),
    "a branch on a tensor": lambda: bool(torch.zeros(1) > 0),
    "nonzero": lambda: torch.zeros(3).nonzero(),
    "equal": lambda: torch.equal(torch.zeros(3), torch.zeros(3)),
    "a tensor made of numbers": lambda: torch.tensor([1, 2]),
    "a copy to the host": lambda: torch.zeros(3, device="meta").copy_(torch.zeros(3)),
    "synchronize": lambda: torch.cuda.synchronize(),  # noqa: PLW0108  (patched later)
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_capture_catches(name: str) -> None:
    with pytest.raises((CaptureError, RuntimeError)), capture():
        FAULTS[name]()


def test_nothing_is_chosen_and_kept_while_a_graph_is_captured() -> None:
    """A tile cannot be tried then. The anchor serves, and the choice is left for later."""
    x, weight = empty(8, 1, 512), empty(640, 512)
    linear._kept.clear()
    with capture() as launches:
        linear.linear(x, weight)
    tiles = matmul.classes(x, weight.t()[None], matmul.product).tiles
    anchor = tiles[-1][1]
    assert launches[0].arguments["BLOCK_M"] == anchor.block_m
    assert launches[0].arguments["BLOCK_N"] == anchor.block_n
    assert not linear._kept


def test_partial_results_of_splits_are_bounded() -> None:
    """A chunk of a prompt over 128 Ki keys: side by side, its splits would take 8 GiB."""
    query, key = empty(1, 32, 900, 128), empty(1, 8, 1 << 17, 128)
    layout = attention_layout.Layout(1, max_k=1 << 17)
    launches = ahead.launches_of(lambda: attention.attention(query, key, key, layout, SCORES))
    assert [launch.name for launch in launches] == ["attention_kernel"]
    short = query[:, :, :16]
    launches = ahead.launches_of(lambda: attention.attention(short, key, key, layout, SCORES))
    assert [launch.name for launch in launches] == ["attention_kernel", "merge_kernel"]
