"""The checks of norms, softmax, reductions and experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import grouped, matmul, norm, reduce, softmax
from gpu_sections.common import DTYPES, Failures, note_error, random, short
from gpu_sections.device import device

Op = Callable[[torch.Tensor], torch.Tensor]
LENGTHS = (128, 576, 4096, 4099, 151936)
OPS: dict[str, tuple[Op, Op]] = {
    "rms_norm": (
        lambda x: norm.fused_rms_norm(x, [x.shape[-1]], None, 1e-6)[0],
        lambda x: F.rms_norm(x, (x.shape[-1],), None, 1e-6),
    ),
    "layer_norm": (
        lambda x: norm.layer_norm(x, [x.shape[-1]], None, None, 1e-5)[0],
        lambda x: F.layer_norm(x, (x.shape[-1],)),
    ),
    "softmax": (lambda x: softmax.softmax(x, -1, False), lambda x: x.softmax(-1)),
    "log_softmax": (lambda x: softmax.log_softmax(x, -1, False), lambda x: x.log_softmax(-1)),
    "mean": (lambda x: reduce.mean_dims(x, [-1]), lambda x: x.mean(-1)),
    "sum": (lambda x: reduce.sum_dims(x, [-1]), lambda x: x.sum(-1)),
    "logsumexp": (lambda x: reduce.logsumexp(x, [-1]), lambda x: x.logsumexp(-1)),
    "norm": (lambda x: reduce.vector_norm(x, 2, [-1]), lambda x: x.norm(dim=-1)),
    "cumsum": (lambda x: reduce.cumsum(x, -1), lambda x: x.cumsum(-1)),
}
"""Name, then our kernel and the stock op."""
EXPERTS = ((128, 1536, 2048), (128, 2048, 768))
"""(experts, N, K)."""


def row_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Rows of hidden size, head size and vocabulary."""
    for name in OPS:
        for dtype in DTYPES:
            for length in device.few(LENGTHS):
                yield lambda n=name, d=dtype, c=length: row_check(n, device.size(c), d, errors)


def row_check(name: str, length: int, dtype: torch.dtype, errors: dict[str, float]) -> Failures:
    """Right, and each row the same bits in every call."""
    ours, stock = OPS[name]
    x = random(device.size(513), length, dtype=dtype)
    whole = ours(x)
    note_error(errors, f"{name} {short(dtype)}", whole, stock(x.double()))
    label = f"{name} {short(dtype)} length={length}"
    calls = {f"batch-size {n}": (x[7 : 7 + n].clone(), whole[7 : 7 + n]) for n in (1, 2, 33)}
    calls["position"] = (x.roll(5, 0), whole.roll(5, 0))
    return [
        f"{label}: {call}"
        for call, (rows, out) in calls.items()
        if not torch.equal(ours(rows), out)
    ]


def expert_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """The experts of Qwen3-30B-A3B."""
    for dtype in DTYPES:
        for experts, columns, inner in EXPERTS:
            sizes = device.size(experts) // 16, device.size(columns), device.size(inner)
            yield lambda s=sizes, d=dtype: expert_check(*s, d, errors)


def expert_check(
    experts: int, columns: int, inner: int, dtype: torch.dtype, errors: dict[str, float]
) -> Failures:
    """A token by its expert: the same bits alone, and among others of any number."""
    name = f"experts {short(dtype)} N={columns} K={inner}"
    x = random(64, inner, dtype=dtype)
    right = random(experts, columns, inner, dtype=dtype).transpose(1, 2)
    counts = torch.randint(0, 2 * 64 // experts + 1, (experts,)).tolist()
    ends = [min(64, sum(counts[: index + 1])) for index in range(experts - 1)] + [64]
    out = grouped.grouped_mm(x, right, offsets(ends))
    found: list[Any] = []
    for expert, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if first == last:
            continue
        exact = x[first:last].double() @ right[expert].double()
        note_error(errors, f"experts {short(dtype)}", out[first:last], exact)
        alone = [0] * expert + [1] * (experts - expert)
        if not torch.equal(grouped.grouped_mm(x[first : first + 1], right, offsets(alone)),
                           out[first : first + 1]):  # fmt: skip
            found.append(f"{name}: a token alone by expert {expert}")
    return found


def ordered_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Attention that a model writes out: sums over keys in order."""
    for dtype in DTYPES:
        yield lambda d=dtype: ordered_check(d, errors)


def ordered_check(dtype: torch.dtype, errors: dict[str, float]) -> Failures:
    """Right, and masked keys on the left change no bit of a share or a result."""
    keys, padding = device.size(700), 77
    scores = random(2, 4, 33, keys, dtype=dtype)
    values = random(8, keys, device.size(128), dtype=dtype)
    shares = softmax.softmax(scores, -1, False)
    out = matmul.bmm(shares.flatten(0, 1), values)
    note_error(errors, f"softmax over keys {short(dtype)}", shares, scores.double().softmax(-1))
    exact = shares.flatten(0, 1).double() @ values.double()
    note_error(errors, f"product in order {short(dtype)}", out, exact)
    lowest = torch.finfo(dtype).min
    padded = softmax.softmax(F.pad(scores, (padding, 0), value=lowest), -1, False)
    again = matmul.bmm(padded.flatten(0, 1), F.pad(values, (0, 0, padding, 0), value=5.0))
    found = [f"softmax over keys {short(dtype)}: padding"]
    found *= not torch.equal(padded[..., padding:], shares)
    return found + [f"product in order {short(dtype)}: padding"] * (not torch.equal(again, out))


def offsets(ends: list[int]) -> torch.Tensor:
    """(experts,) int32 on the device."""
    return torch.tensor(ends, dtype=torch.int32, device=device.name)
