"""Watches for sums over tokens whose order of addition depends on the number of keys.

Masked keys add exact zeros. But the stock sums take several entries at a time, so a zero in front
moves the others to another place, and rounds the sum in another way. In 16 bits the fault is
rarely seen in a few tokens, since most sums round to the same bits. So it is found by shape: a
forward pass of a prime number of tokens, and an op that reduces a multiple of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from detcheck.kernels.op_watch import AttentionWatch

SUMS = frozenset(
    {"sum", "mean", "nansum", "prod", "logsumexp", "linalg_vector_norm", "std", "var", "var_mean"}
)
"""aten ops that take the dims to reduce as second or third argument."""


class TokenSums(AttentionWatch):
    """A context in which `found` collects the ops that sum over `num_tokens` tokens out of order.

    `num_tokens` should be a prime number, so that no other size of the model is a multiple of it.
    Ops inside our own attention, which takes padding away first, are left out.
    """

    def __init__(self, num_tokens: int):
        super().__init__()
        self.found: set[str] = set()
        self._num_tokens = num_tokens

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        op = func._schema.name.removeprefix("aten::")
        sizes = () if self._inside_attention else _reduced(op, args)
        if any(size and size % self._num_tokens == 0 for size in sizes):
            self.found.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def _reduced(op: str, args: Sequence[Any]) -> Iterator[int]:
    """Sizes of the dims over which a call sums in the order of the stock kernels."""
    x = args[0] if args else None
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return
    if op in SUMS:
        dims = args[2 if op == "linalg_vector_norm" else 1] if len(args) > 1 else None
        yield from (x.shape[dim] for dim in _listed(dims, x.dim()))
    elif op == "_log_softmax" or (op == "_softmax" and x.dim() < 3):
        yield x.shape[args[1]]


def _listed(dims: Any, num_dims: int) -> Sequence[int]:
    if isinstance(dims, int):
        return (dims,)
    return tuple(dims) if dims else range(num_dims)
