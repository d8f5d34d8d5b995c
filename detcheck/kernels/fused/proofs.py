"""Proof that a fused kernel has the bits of the own code: both run once for each kind of operands.

The operands are seeded random numbers, with zeros, denormal, large and infinite ones among them. A
kind whose bits differ, or whose kernel does not compile or launch, is left to the own code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from detcheck.kernels.triton.launch import capturing, keep

Launch = Callable[..., Any]
UNTRIED: Any = object()
"""In place of a launch for operands that were not seen yet."""
ENTRIES = 1 << 20
"""Entries of the random operands. A sum of squares that differs in its last bit changes one entry
of about 30,000 of a result in bfloat16."""
SPECIAL = (0.0, -0.0, 1e-40, -1e-40, 6e-8, -6e-8, 1.2e-38, 65504.0, 3e38, -3e38)
"""Values among the random ones; some are infinite in float16."""
DIFFERENT = "the bits differ"


class ProvenLaunches:
    """The launches of one fused kernel, by kind of operands; each kind was compared first."""

    def __init__(self) -> None:
        self.launches: dict[Any, Launch | None] = {}
        """By shapes, strides and dtypes of all operands; None if the own code serves them."""
        self.faults: dict[Any, str | None] = {}
        """By kind of operands, None or why it is not served. One comparison holds for all shapes
        of a kind."""

    def first(
        self, operands: Any, kind: Any, make: Callable[[], Launch], proof: Callable[[], bool]
    ) -> Launch | None:
        """The launch for operands that were not seen yet; None if the own code must run.

        A `kind` of None is not served; for `proof` see `try_kind`.
        """
        if kind is not None and not self.try_kind(kind, proof):
            return None
        launch = make() if kind is not None and self.faults[kind] is None else None
        keep(self.launches, operands, launch)
        return launch

    def try_kind(self, kind: Any, proof: Callable[[], bool]) -> bool:
        """Find out whether a kind is served; False if that cannot be found out now.

        `proof` is true if the kernel has the bits of the own code for this `kind`. It is not called
        while a CUDA graph is captured, and called again later if memory was short.
        """
        if kind in self.faults:
            return True
        if capturing():
            return False
        try:
            with _disable_current_modes():
                self.faults[kind] = None if proof() else DIFFERENT
        except torch.OutOfMemoryError:
            return False
        except Exception as error:  # of Triton's compiler or of the driver
            self.faults[kind] = f"{type(error).__name__}: {error}"
        return True


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """True if two tensors have the same dtype, shape and bits; every NaN is the same."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    equal = one.contiguous().view(whole) == other.contiguous().view(whole)
    return bool((equal | (one.isnan() & other.isnan())).all())


def random(seed: int, *shape: int, like: torch.Tensor) -> torch.Tensor:
    """Seeded normal numbers of the dtype and on the device of `like`, with `SPECIAL` among them.

    Rows have different magnitudes. Every tenth row has special numbers among others; one in two
    hundred has nothing but zeros, another nothing but denormal numbers.
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    on: Any = {"device": like.device, "dtype": torch.float32}
    rows = torch.randn(*shape, generator=generator, **on).view(-1, shape[-1])
    exponents = torch.arange(len(rows), device=like.device) % 7 - 3
    rows *= torch.exp2(4.0 * exponents)[:, None]
    places = rows[::10, :: max(1, shape[-1] // 64)]
    special = torch.tensor(SPECIAL, **on)
    places.copy_(special[torch.arange(places.shape[1], device=like.device) % len(special)])
    rows[7::200], rows[107::200] = 0.0, 1e-40
    return rows.view(shape).to(like.dtype)


@contextmanager
def uncounted(calls: Mapping[str, Counter[str]]) -> Iterator[None]:
    """Calls of overrides within this context are not counted in `calls`."""
    before = {family: Counter(each) for family, each in calls.items()}
    try:
        yield
    finally:
        for family, each in calls.items():
            for op in tuple(each):  # another thread may count
                each[op] = before[family][op]
