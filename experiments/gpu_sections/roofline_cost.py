"""What a launch costs on a card: bytes, operations, programs, waves, and the bound they imply."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from detcheck.kernels.triton.ahead import Compiled, Launch, compile_launch, specialised

PROCESSORS = 132
HOPPER = 90
REGISTERS, REGISTER_STEP = 65536, 256
"""32-bit registers of a processor, and the step in which a warp gets them."""
SHARED_BYTES, RESERVED_BYTES = 233472, 1024
"""Shared memory of a processor, and what each program needs besides its own."""
WARPS, PROGRAMS = 64, 32
"""Most warps and programs that are resident on a processor."""


@dataclass(frozen=True)
class Card:
    """Peak rates by the vendor's datasheet."""

    name: str
    bytes_a_second: float
    flops_a_second: float
    """Dense bfloat16."""


H100 = Card("H100 SXM", 3.35e12, 989e12)
H200 = Card("H200", 4.8e12, 989e12)


@dataclass(frozen=True)
class Work:
    """What a call has to move and compute, whatever kernel does it."""

    read_bytes: int
    written_bytes: int
    flops: int

    @property
    def moved_bytes(self) -> int:
        """Bytes through the card's memory, each once."""
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True)
class Cost:
    """One call: its work, and the launches that do it."""

    work: Work
    launches: tuple[Launch, ...]
    """The largest first; the others merge or prepare."""

    @property
    def compiled(self) -> Compiled:
        """The binary of the first launch."""
        return compiled(self.launches[0])

    @property
    def programs(self) -> int:
        """Programs of the first launch."""
        return self.launches[0].programs

    @property
    def resident(self) -> int:
        """Programs of the first launch that a processor holds at once."""
        made = self.compiled
        registers = ceil(made.registers * 32 / REGISTER_STEP) * REGISTER_STEP * made.warps
        shared = made.shared_bytes + RESERVED_BYTES
        most = (REGISTERS // registers, SHARED_BYTES // shared, WARPS // made.warps, PROGRAMS)
        return max(1, min(most))

    @property
    def waves(self) -> float:
        """How often the card is filled with resident programs."""
        return self.programs / (PROCESSORS * self.resident)

    @property
    def busy(self) -> float:
        """The share of the processors' time with work, if all programs take equally long."""
        rounds = ceil(self.programs / PROCESSORS)
        return self.programs / (rounds * PROCESSORS)

    def seconds(self, card: Card) -> float:
        """The least time: memory at its peak rate, or the busy processors at theirs."""
        moving = self.work.moved_bytes / card.bytes_a_second
        return max(moving, self.work.flops / (card.flops_a_second * self.busy))


_binaries: dict[str, Compiled] = {}


def compiled(launch: Launch) -> Compiled:
    """The launch, compiled once for all grids and addresses."""
    key = repr((launch.name, specialised(launch), launch.options))
    if key not in _binaries:
        _binaries[key] = compile_launch(launch, HOPPER)
    return _binaries[key]
