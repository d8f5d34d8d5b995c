"""The checks of attention: head sizes, groups, and lengths on both sides of every boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from detcheck.kernels.triton import attention, differentiable
from detcheck.kernels.triton.attention import PLAIN
from detcheck.kernels.triton.attention_layout import Layout
from gpu_sections.common import DTYPES, Failures, note_error, random, short
from gpu_sections.device import device

HEADS = ((9, 3, 64), (32, 8, 128), (8, 8, 96), (16, 2, 256), (4, 4, 80))
SMALL_HEADS = ((3, 1, 16), (2, 2, 20))
"""(heads, key-value heads, head size); small ones for a dry run."""
LENGTHS = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1300)
"""Keys on both sides of every boundary of blocks, tiles and splits."""
Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attention_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Head sizes and groups; each with lengths around every boundary."""
    for dtype in DTYPES:
        for heads in HEADS if device.name == "cuda" else SMALL_HEADS:
            yield lambda s=heads, d=dtype: attention_check(*s, d, errors)


def attention_check(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, errors: dict[str, float]
) -> Failures:
    """Right, and each query the same bits in every call, chunk and phase."""
    name = f"attention {short(dtype)} {heads}/{kv_heads} heads of {dim}"
    sizes = device.few(LENGTHS)
    wholes = [request(heads, kv_heads, n, dim, dtype) for n in sizes]
    prefill = packed(wholes)
    found: Failures = []
    for whole, out, size in zip(wholes, prefill, sizes, strict=True):
        note_error(errors, f"attention {short(dtype)}", out, exact_attention(whole))
        if not torch.equal(packed([whole])[0], out):
            found.append(f"{name}: batch-size at {size} keys")
        for cut in {size // 2, size // 3} - {0}:
            if not torch.equal(packed([tail(whole, cut)])[0], out[cut:]):
                found.append(f"{name}: chunking at {cut} of {size}")
    decoded = packed([tail(whole, whole[0].shape[2] - 1) for whole in wholes])
    for one, out, size in zip(decoded, prefill, sizes, strict=True):
        if not torch.equal(one[0], out[-1]):
            found.append(f"{name}: prefill-decode at {size} keys")
    for parallel in (True, False):
        again = packed([tail(whole, whole[0].shape[2] - 1) for whole in wholes], parallel)
        if not all(map(torch.equal, again, decoded)):
            found.append(f"{name}: splits {'side by side' if parallel else 'in turn'}")
    reordered = packed(wholes[::-1])[::-1]
    found += [f"{name}: position"] * (not all(map(torch.equal, reordered, prefill)))
    return found + padding_failures(name, wholes[-1], prefill[-1])


def padding_failures(name: str, whole: Request, expected: torch.Tensor) -> Failures:
    """A request that is padded on the left."""
    padded = [F.pad(x, (0, 0, 77, 0), value=5.0) for x in whole]
    keys = differentiable.PaddedKeys(torch.tensor([77], device=device.name))
    out = differentiable.padded_attention(*padded, keys, PLAIN, None)
    return [f"{name}: padding"] * (not torch.equal(out[0, 77:], expected))


def request(heads: int, kv_heads: int, length: int, dim: int, dtype: torch.dtype) -> Request:
    """Query, key and value (1, heads, length, dim)."""
    key, value = (random(1, kv_heads, length, dim, dtype=dtype) for _ in range(2))
    return random(1, heads, length, dim, dtype=dtype), key, value


def tail(whole: Request, first: int) -> Request:
    """The queries from `first` on, with all keys."""
    return whole[0][:, :, first:], whole[1], whole[2]


def packed(requests: list[Request], parallel: bool | None = None) -> list[torch.Tensor]:
    """All requests in one call; each one's (q, heads, dim)."""
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*requests, strict=True))
    q_lens = [one[0].shape[2] for one in requests]
    layout = Layout(len(requests), bounds(q_lens), bounds([one[1].shape[2] for one in requests]))
    return list(attention.attention(query, key, value, layout, parallel=parallel)[0].split(q_lens))


def bounds(lengths: list[int]) -> torch.Tensor:
    """Cumulative lengths (requests + 1,) int32."""
    return torch.tensor([0, *lengths], device=device.name).cumsum(0).int()


def exact_attention(whole: Request) -> torch.Tensor:
    """(q, heads, dim) in float64."""
    query, key, value = (x[0].double() for x in whole)
    group = len(query) // len(key)
    key, value = (x.repeat_interleave(group, 0) for x in (key, value))
    scores = query @ key.transpose(1, 2) / query.shape[2] ** 0.5
    hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(0, 1)
