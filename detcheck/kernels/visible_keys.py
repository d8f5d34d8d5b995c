"""Which keys each query sees: read from transformers' masks, or made from positions.

A query of a causal model sees an interval of keys that ends at its own position. Where the
interval starts depends on the layer: at the request's first key (full attention), a fixed number
of keys back (a sliding window), or at the start of a chunk. A row may hold several sequences one
after another, as a trainer packs them. Padding, on the left or on the right, is in no interval.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from detcheck.errors import UsageError

HIDDEN = -1e4
"""A mask's value for a hidden key is this or less; a value between this and 0 is a bias."""


UNREADABLE = (
    "On a GPU batch-invariant attention needs causal masks without a bias, with padding only at "
    'the ends of a row: use `device="cpu"`, or `kernels="stock"` for this model.'
)


class UnreadableMaskError(UsageError):
    """A mask that is a bias, or in which a query sees no interval of keys."""


@dataclass(frozen=True)
class VisibleKeys:
    """The intervals of a padded batch. A query at position p sees keys `[first, p]`."""

    starts: torch.Tensor
    """(rows,) first key that any query of the row sees; queries before it are padding."""
    ends: torch.Tensor
    """(rows,) end of the keys that queries see; queries at or behind it are padding."""
    firsts: torch.Tensor
    """(rows, q) first key that each query sees; undefined for padding."""
    narrow: bool
    """True if some query does not see all keys from its row's start up to itself."""
    right_padded: bool
    """True if some row ends before its last key."""
    k_len: int

    @cached_property
    def blocks(self) -> tuple[tuple[int, Block], ...]:
        """All blocks, each with its row; asked for once for all layers that share a mask."""
        rows = zip(self.starts.tolist(), self.ends.tolist(), self.firsts.tolist(), strict=True)
        return tuple(
            (row, block)
            for row, (start, end, firsts) in enumerate(rows)
            for block in blocks_of_row(start, end, firsts, self.k_len)
        )

    @cached_property
    def several_sequences(self) -> bool:
        """True if a row holds several sequences or chunks, and no key is in a cache."""
        rows = [row for row, _ in self.blocks]
        return self.firsts.shape[1] == self.k_len and len(set(rows)) < len(rows)

    @cached_property
    def packed_bounds(self) -> tuple[tuple[int, ...], ...]:
        """For each row the bounds of its sequences, 0 and the row's length included.

        Padding counts as sequences.
        """
        bounds: list[set[int]] = [{0, self.k_len} for _ in range(len(self.starts))]
        for row, block in self.blocks:
            bounds[row] |= {block.q, block.q + block.q_len}
        return tuple(tuple(sorted(each)) for each in bounds)

    @cached_property
    def window(self) -> int | None:
        """Keys that a query of a sequence sees, itself included; None: all of its sequence.

        Raises UnreadableMaskError if that is not one number for all queries.
        """
        blocks = [block for _, block in self.blocks]
        if not any(any(block.firsts) for block in blocks):
            return None
        size = max(max(block.num_seen()) for block in blocks)
        if any(seen != min(at + 1, size) for b in blocks for at, seen in enumerate(b.num_seen())):
            raise UnreadableMaskError(UNREADABLE)
        return size


@dataclass(frozen=True, slots=True)
class Block:
    """Queries `[q, q + q_len)` of one request, which see no key outside `[k, k + k_len)`."""

    q: int
    q_len: int
    k: int
    k_len: int
    firsts: tuple[int, ...]
    """For each query, the first key that it sees, counted from `k`."""

    def num_seen(self) -> list[int]:
        """How many keys each query sees."""
        past = self.k_len - self.q_len
        return [past + at + 1 - first for at, first in enumerate(self.firsts)]


def read_mask(mask: torch.Tensor, rows: int, k_len: int) -> VisibleKeys:
    """The intervals of a mask (rows or 1, 1, q, at least k_len), boolean or added to the scores.

    Queries that are padding may see nothing or all; on the right also any of the keys that are not
    padding. A row may be padding as a whole. A query that sees itself alone is a request of one
    token. Raises UnreadableMaskError if another query sees something else than an interval that
    ends at itself, or if the mask is a bias.
    """
    mask = mask[..., :k_len]
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    num_seen = visible.sum(-1)
    key = torch.arange(k_len, device=mask.device)
    position = key[k_len - visible.shape[1] :]
    firsts = position + 1 - num_seen
    seen = (key <= position[:, None]) & (key >= firsts[..., None])
    is_interval = (seen == visible).all(-1) & (num_seen > 0)
    # Padding on the right is seen by nobody, not even by itself.
    ends = torch.where(is_interval, position + 1, 0).amax(-1)
    on_the_right = position >= ends[:, None]
    # The first query of a request sees only itself. Padding that does so is computed like one.
    starts = torch.where(is_interval, firsts, k_len).amin(-1)
    on_the_left = position < starts[:, None]
    is_padding = on_the_left | on_the_right
    within = on_the_right & ~(visible & (key >= ends[:, None, None])).any(-1)
    unread = is_padding & ((num_seen == 0) | (num_seen == k_len) | within)
    # From one query to the next the first key never moves back.
    ordered = torch.where(on_the_left, starts[:, None], torch.where(on_the_right, k_len, firsts))
    biased = mask.dtype != torch.bool and bool(((mask != 0) & (mask > HIDDEN)).any())
    readable = (is_interval & ~is_padding | unread).all() & (ordered.diff(dim=-1) >= 0).all()
    readable &= ((ends > 0) | (num_seen == 0).all(-1)).all()
    if mask.shape[1] != 1 or biased or not bool(readable):
        raise UnreadableMaskError(UNREADABLE)
    return VisibleKeys(
        starts.expand(rows),
        ends.expand(rows),
        firsts.expand(rows, -1),
        bool((~is_padding & (firsts > starts[:, None])).any()),
        bool((ends < k_len).any()),
        k_len,
    )


def without_mask(
    rows: int, q_len: int, k_len: int, window: int | None, device: torch.device
) -> VisibleKeys:
    """The intervals of a batch without padding whose queries see `window` keys; None: all."""
    firsts = torch.tensor(window_firsts(window, q_len, k_len), device=device)
    narrow = window is not None and window < k_len and q_len > 1
    starts = firsts[:1] if q_len else firsts.new_zeros(1)
    ends = torch.full((rows,), k_len, device=device)
    return VisibleKeys(starts.expand(rows), ends, firsts.expand(rows, -1), narrow, False, k_len)


def window_firsts(window: int | None, q_len: int, k_len: int) -> list[int]:
    """First key that each of a request's last `q_len` queries sees, of its `k_len` keys.

    `window` counts the keys that a query sees, itself included; None: all of them.
    """
    positions = range(k_len - q_len, k_len)
    return [0 if window is None else max(0, position + 1 - window) for position in positions]


def blocks_of_row(start: int, end: int, firsts: Sequence[int], k_len: int) -> Iterator[Block]:
    """The blocks of one row of a padded batch, cut at each query that sees only itself.

    So each packed sequence, and each chunk of chunked attention, is computed by itself. `firsts`
    are of the last queries, in keys of the row; queries before the key `start`, and from the key
    `end` on, are padding and are in no block.
    """
    past = k_len - len(firsts)
    begin, stop = max(0, start - past), end - past
    for q in range(begin, stop):
        if q + 1 == stop or firsts[q + 1] == past + q + 1:
            k = firsts[begin]
            own = tuple(first - k for first in firsts[begin : q + 1])
            yield Block(begin, q + 1 - begin, k, past + q + 1 - k, own)
            begin = q + 1


@dataclass(frozen=True, slots=True)
class _KnownMask:
    """A mask that was read, and the signs that it is still the same."""

    mask: weakref.ref[torch.Tensor]
    rows: int
    k_len: int
    version: int
    copy: torch.Tensor | None
    """Its values; None on a GPU, if its version counter alone has to show changes.

    Inference tensors have no such counter, and changes through `.data` or NumPy do not count.
    """
    keys: VisibleKeys

    def is_still(self, mask: torch.Tensor, rows: int, k_len: int) -> bool:
        """True if `mask` is this one and was not changed since it was read."""
        if self.mask() is not mask or (self.rows, self.k_len) != (rows, k_len):
            return False
        same = self.version == _version(mask)
        return same and (self.copy is None or _are_equal(mask, self.copy))


class _LastMask:
    """The masks that were read last: the layers of a kind share one mask."""

    def __init__(self) -> None:
        self._known: list[_KnownMask] = []

    def read(self, mask: torch.Tensor, rows: int, k_len: int) -> VisibleKeys:
        """As `read_mask`, or its earlier result if the mask has not changed."""
        for known in self._known:
            if known.is_still(mask, rows, k_len):
                return known.keys
        keys = read_mask(mask, rows, k_len)
        copy = mask.detach().clone() if mask.is_cpu or mask.is_inference() else None
        known = _KnownMask(weakref.ref(mask), rows, k_len, _version(mask), copy, keys)
        self._known = [known, *self._known[:_KINDS_OF_LAYERS]]
        return keys


def _version(mask: torch.Tensor) -> int:
    return 0 if mask.is_inference() else mask._version


def _are_equal(mask: torch.Tensor, copy: torch.Tensor) -> bool:
    """As `mask.equal(copy)`; large masks are compared by eight bytes at a time."""
    plain = mask.is_contiguous() and copy.is_contiguous() and not mask.storage_offset()
    if plain and mask.nbytes >= _LARGE_BYTES and not mask.nbytes % 8:
        mask, copy = (x.detach().view(-1).view(torch.int64) for x in (mask, copy))
    return mask.equal(copy)


_LARGE_BYTES = 8192
_KINDS_OF_LAYERS = 3
"""A model has a mask for each kind of layer, such as full and sliding."""
_last_mask = threading.local()


def read_mask_once(mask: torch.Tensor, rows: int, k_len: int) -> VisibleKeys:
    """As `read_mask`, but once a forward pass instead of once a layer."""
    if not hasattr(_last_mask, "value"):
        _last_mask.value = _LastMask()
    keys: VisibleKeys = _last_mask.value.read(mask, rows, k_len)
    return keys


def used_places(
    q_len: int, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values (rows, kv_heads, k, dim) and their mask, without free places behind the keys.

    A cache of fixed size has them. In an interval of keys each query is behind all of its keys, so
    a mask that can be read has none.
    """
    k_len = key.shape[2]
    if q_len < k_len and not _is_readable(mask, len(key), k_len):
        used = _num_used(mask, q_len, k_len)
        key, value, mask = key[:, :, :used], value[:, :, :used], mask[..., :used]
    return key, value, mask


def rows_alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each row's query, keys, values and mask as of a batch of this row alone.

    A row may not see the last keys that another row sees, as with a choice of the best keys.
    """
    masks = mask.expand(len(query), *mask.shape[1:]).split(1)
    for q, k, v, own in zip(query.split(1), key.split(1), value.split(1), masks, strict=True):
        yield q, *used_places(q.shape[2], k, v, own)


def _is_readable(mask: torch.Tensor, rows: int, k_len: int) -> bool:
    try:
        read_mask_once(mask, rows, k_len)
    except UnreadableMaskError:
        return False
    return True


def _num_used(mask: torch.Tensor, q_len: int, k_len: int) -> int:
    """Keys up to the last that any query sees."""
    seen = mask[..., :k_len] if mask.dtype == torch.bool else mask[..., :k_len] > HIDDEN
    places = seen.flatten(0, -2).any(0).nonzero()
    return k_len if len(places) == 0 else max(q_len, int(places[-1]) + 1)
