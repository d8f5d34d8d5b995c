"""Compile kernels ahead of time for a GPU that this machine need not have, and read the result.

A launcher is called with tensors that have no storage (`device="meta"`). Its launches are noted
instead of run, and each noted launch is compiled as Triton would compile it at run time, alignment
and unit strides included. The binary then tells registers, stack and shared memory, and the
intermediate code tells which instructions were chosen.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from detcheck.kernels.triton.launch import launches_to

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
"""Arguments of a launch that are for the compiler, not for the kernel."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch as a launcher asked for it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """The kernel's arguments by name, compile-time constants included."""
    options: dict[str, Any]
    """Options of the compiler, by name."""

    @property
    def name(self) -> str:
        """The kernel's name, such as `product_kernel`."""
        return str(self.kernel.fn.__name__)

    @property
    def programs(self) -> int:
        """Number of programs in the grid."""
        count = 1
        for size in self.grid:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Compiled:
    """The binary that the compiler made of a launch."""

    registers: int
    """32-bit registers a thread."""
    stack_bytes: int
    """Bytes of stack a thread; values that do not fit the registers are kept there."""
    loop_spills: int
    """Instructions inside loops that read or write the stack. Spills outside cost next to nothing.
    """
    shared_bytes: int
    """Bytes of shared memory a program."""
    warps: int
    """Warps of 32 threads a program."""
    ttgir: str
    """Triton's GPU code, in which layouts and matrix products can be read."""
    ptx: str


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Within this context kernels do not run: the list that it gives collects their launches."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], named: Any) -> None:
        options = {name: value for name, value in named.items() if name in OPTIONS}
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments |= {name: value for name, value in named.items() if name not in OPTIONS}
        launches.append(Launch(kernel, tuple(grid), arguments, options))

    with launches_to(note):
        yield launches


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The launches that `call` makes; none of them runs."""
    with noted() as launches:
        call()
    return launches


def compile_launch(launch: Launch, sm: int) -> Compiled:
    """Compile a launch for compute capability `sm` (90 for Hopper), to PTX and to a binary."""
    source = ASTSource(launch.kernel, *specialised(launch))
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=launch.options)
    resources = _resources(compiled.asm["cubin"])
    return Compiled(
        **resources,
        loop_spills=_loop_spills(compiled.asm["cubin"]) if resources["stack_bytes"] else 0,
        shared_bytes=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        ttgir=compiled.asm["ttgir"],
        ptx=compiled.asm["ptx"],
    )


def repeated_products(ttgir: str) -> list[str]:
    """The products on Hopper's matrix unit that warps compute more than once.

    A layout gives each warp 16 rows of a tile. If the warps along M hold more rows than the tile
    has, or those along N more columns, some of them compute what others compute too.
    """
    layouts = {
        name: (int(along_m), int(along_n), int(columns))
        for name, along_m, along_n, columns in _LAYOUT.findall(ttgir)
    }
    repeated = []
    for rows, columns, name in _PRODUCT.findall(ttgir):
        along_m, along_n, width = layouts[name]
        if 16 * along_m > int(rows) or along_n * width > int(columns):
            repeated.append(f"{rows}x{columns} by {along_m}x{along_n} warps")
    return repeated


_LAYOUT = re.compile(
    r"(#mma\d*) = #ttg\.nvidia_mma<\{versionMajor = 3.*?warpsPerCTA = \[(\d+), (\d+)\]"
    r".*?instrShape = \[\d+, (\d+), \d+\]"
)
_PRODUCT = re.compile(r"warp_group_dot .*-> tensor<(\d+)x(\d+)xf32, (#mma\d*)>")


def specialised(
    launch: Launch,
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Types, constants and alignments that a launch is compiled for, as Triton finds them."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    parameters = {parameter.name: parameter for parameter in launch.kernel.params}
    for index, argument in enumerate(launch.kernel.arg_names):
        value = launch.arguments[argument]
        by_value = not parameters[argument].do_not_specialize
        if isinstance(value, TensorDescriptor):
            block = ",".join(map(str, value.block_shape))
            signature[argument] = f"tensordesc<{TYPES[value.base.dtype][1:]}[{block}]>"
        elif parameters[argument].is_constexpr or value is None or (by_value and _is_one(value)):
            signature[argument] = "constexpr"
            constants[(index,)] = value
        else:
            signature[argument] = _type_of(value)
            if isinstance(value, torch.Tensor) or (
                by_value and type(value) is int and value % 16 == 0
            ):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _is_one(value: Any) -> bool:
    return type(value) is int and value == 1


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of the kernel in a binary."""
    listing = _run_tool("cuobjdump", "--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    if found is None:
        raise RuntimeError(f"cuobjdump lists no resources: {listing}")
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def _loop_spills(cubin: bytes) -> int:
    """Reads and writes of the stack between a label and a later branch back to it."""
    labels: dict[str, int] = {}
    spills: list[int] = []
    loops: list[tuple[int, int]] = []
    for number, line in enumerate(_run_tool("nvdisasm", "-c", cubin).splitlines()):
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = number
        elif re.search(r"\b(STL|LDL)\b", line):
            spills.append(number)
        elif (branch := re.search(r"\bBRA `\((\.L_x_\d+)\)", line)) and branch[1] in labels:
            loops.append((labels[branch[1]], number))
    return sum(any(first <= spill <= last for first, last in loops) for spill in spills)


def _run_tool(name: str, option: str, cubin: bytes) -> str:
    """What one of the CUDA tools that come with Triton prints of a binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def subtractions_from_zero(ptx: str) -> int:
    """How many floats are negated as `0 - x`, which makes +0 of +0, where `-x` makes -0."""
    zeros = re.findall(r"mov\.b(?:16|32)\s+(%\w+), 0(?:f0{8}|x0{4})?;", ptx)
    firsts = re.findall(r"\bsub\.\S*f(?:16|16x2|32)\s+%\w+, (%\w+),", ptx)
    return sum(first in zeros for first in firsts)
