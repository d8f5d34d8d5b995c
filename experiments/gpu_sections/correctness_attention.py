"""The checks of attention: head sizes, groups, and lengths on both sides of every boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from detcheck.kernels.scores import Scores
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


WINDOWED = ((64, 8, 128, None, True), (32, 8, 300, None, False), (16, 8, 300, 50.0, False))
"""(heads, key-value heads, window, soft cap, sinks): GPT-OSS, Mistral, Gemma 2, shorter windows."""
WINDOWED_DIMS = (64, 128, 256)


def windowed_checks(errors: dict[str, float]) -> Iterator[Callable[[], Failures]]:
    """Windows, sinks and soft caps."""
    for dtype in DTYPES:
        for dim, layer in zip(WINDOWED_DIMS, device.few(WINDOWED), strict=False):
            yield lambda s=(dim, *layer), d=dtype: windowed_check(*s, d, errors)


def windowed_check(
    dim: int, heads: int, kv_heads: int, window: int, softcap: float | None, has_sinks: bool,
    dtype: torch.dtype, errors: dict[str, float],
) -> Failures:  # fmt: skip
    """Right, and decoded over a cache that keeps only the window, to the bits of the prefill."""
    if device.name == "cpu":
        dim, heads, kv_heads, window = 16, 4, 2, 17
    name = f"attention {short(dtype)} window {window}, {heads}/{kv_heads} heads of {dim}"
    size = device.size(700)
    whole = request(heads, kv_heads, size, dim, dtype)
    sinks = random(heads, dtype=dtype) if has_sinks else None
    scores = Scores(None, softcap, sinks)
    prefill = windowed(whole, range(size), window, scores)
    exact = differentiable._stock(
        *(x.double() for x in whole), window_mask(size, window), Scores(None, softcap or 1e9, sinks)
    )
    note_error(errors, f"attention {short(dtype)}", prefill, exact[0].transpose(0, 1))
    found: Failures = []
    for position in (0, window - 1, window, size // 2, size - 1):
        kept = slice(max(0, position + 1 - window), position + 1)
        last = whole[0][:, :, position : position + 1], *(x[:, :, kept] for x in whole[1:])
        for parallel in (False, True):
            out = windowed(last, range(position, position + 1), window, scores, parallel)
            if not torch.equal(out[0], prefill[position]):
                found.append(f"{name}: prefill-decode at {position}, side by side: {parallel}")
    return found


def windowed(
    one: Request, positions: range, window: int, scores: Scores, parallel: bool | None = None
) -> torch.Tensor:
    """(q, heads, dim) of a request whose keys before the window may be gone."""
    query, key, value = one
    length = key.shape[2]
    layout = Layout(
        1, bounds([query.shape[2]]), bounds([length]), window=window if length > window else None,
        positions=torch.tensor(positions, device=device.name),
    )  # fmt: skip
    return attention.attention(query, key, value, layout, scores, parallel=parallel)[0]


def window_mask(size: int, window: int) -> torch.Tensor:
    """(size, size) of booleans."""
    at = torch.arange(size, device=device.name)
    return (at <= at[:, None]) & (at > at[:, None] - window)


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
