"""Compile every kernel ahead of time, as its launcher would launch it, on a machine with no GPU.

    python compiling.py [sm …]     prints one JSON object a kernel and architecture
    python compiling.py loads      prints how many binaries any number of rows needs

Launchers are called with tensors that have no storage; their launches are recorded instead of run,
and the recorded arguments (alignment and unit strides included) are what is compiled. Run as a
program of its own: the interpreter, which the other tests use, cannot be mixed with it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One launch that was asked for: the kernel, its arguments by name, and compile options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch."""

    name: str
    sm: int
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    wgmma: int
    mma: int
    fma: int
    fp_fusion: bool


class Recorder:
    """Stands in for a kernel: `recorder[grid](…)` notes the launch."""

    def __init__(self, kernel: Any, launches: list[Launch]):
        self.kernel = kernel
        self._launches = launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def note(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            self._launches.append(Launch(self.kernel, arguments, options))

        return note


@contextmanager
def recorded(*modules: Any) -> Iterator[list[Launch]]:
    """Within this context the modules' kernels (`*_kernel`) are not run but noted."""
    launches: list[Launch] = []
    stock = [(m, name, getattr(m, name)) for m in modules for name in dir(m) if is_kernel(name)]
    for module, name, kernel in stock:
        setattr(module, name, Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in stock:
            setattr(module, name, kernel)


def is_kernel(name: str) -> bool:
    return name.endswith("_kernel")


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
        elif parameters[argument].is_constexpr or value is None or (by_value and is_one(value)):
            signature[argument] = "constexpr"
            constants[(index,)] = value
        else:
            signature[argument] = type_of(value)
            if isinstance(value, torch.Tensor) or (
                by_value and type(value) is int and value % 16 == 0
            ):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(name: str, launch: Launch, sm: int) -> Compiled:
    """PTX and cubin for `sm`, with what ptxas says of registers and spills."""
    source = ASTSource(launch.kernel, *specialised(launch))
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=launch.options)
    ptx = compiled.asm["ptx"]
    return Compiled(
        name, sm, **resources(compiled.asm["cubin"]),
        shared_bytes=compiled.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        mma=ptx.count("mma.sync"),
        fma=ptx.count("fma.rn.f32"),
        fp_fusion=launch.options.get("enable_fp_fusion", True),
    )  # fmt: skip


def is_one(value: Any) -> bool:
    """Integers equal to 1 become constants, as at run time."""
    return type(value) is int and value == 1


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a kernel, read from its binary; spills need a stack."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found is not None, said
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "stack_bytes": stack, "local_bytes": local}


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def matmul_launches(sm: int) -> Iterator[tuple[str, Launch]]:
    """Every tile of the tables, for a linear layer and for a plain right-hand side."""
    from detcheck.kernels.triton import configs, descriptors, matmul

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        tiles = configs.table(dtype, (sm // 10, sm % 10))
        for tile, rows in {tile: rows for rows, tile in tiles}.items():
            m = min(rows, 8192)
            left = empty(1, m, 4096, dtype=dtype)
            weight = empty(1, 4096, 4096, dtype=dtype)
            layouts = {"linear": weight.transpose(1, 2), "plain": weight}
            # float16 has the same code as bfloat16; descriptors take linear layers alone.
            if dtype == torch.float16 or tile.descriptors:
                del layouts["plain"]
            for layout, right in layouts.items():
                with recorded(matmul, descriptors) as launches:
                    matmul.product(left, right, None, tile)
                yield f"matmul {layout} {short(dtype)} m={m} {tile}", launches[0]
    bias = empty(4096, dtype=torch.bfloat16)
    left, weight = empty(1, 16, 4096, dtype=bias.dtype), empty(1, 4096, 4096, dtype=bias.dtype)
    tile = configs.table(bias.dtype, (sm // 10, sm % 10))[0][1]
    with recorded(matmul) as launches:
        matmul.product(left, weight.transpose(1, 2), bias, tile, 1024, parallel=True)
        matmul.product(left, weight.transpose(1, 2), bias, tile, 1024, parallel=False)
    for launch, name in zip(launches, ("side by side", "in turn"), strict=True):
        yield f"matmul segments {name}", launch


def attention_launches() -> Iterator[tuple[str, Launch]]:
    """Head sizes and dtypes, packed and padded, in turn and in parallel."""
    from detcheck.kernels.triton import attention

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sizes = ((64, 3), (80, 1), (128, 4), (256, 8))
        for dim, group in sizes if dtype != torch.float16 else sizes[2:3]:
            query = empty(1, 8 * group, 4096, dim, dtype=dtype)
            key = empty(1, 8, 4096, dim, dtype=dtype)
            bounds = empty(9, dtype=torch.int32)
            layout = attention.Layout(8, bounds, bounds)
            with recorded(attention) as launches:
                attention.attention(query, key, key, layout, parallel=False)
                attention.attention(query, key, key, layout, parallel=True)
            for kind, launch in zip(("in turn", "split", "merge"), launches, strict=True):
                yield f"attention {kind} {short(dtype)} dim={dim}", launch
    with recorded(attention) as launches:
        starts = empty(1, dtype=torch.int64)
        attention.attention(query, key, key, attention.Layout(1, starts=starts), parallel=False)
    yield "attention padded", launches[0]


def row_launches() -> Iterator[tuple[str, Launch]]:
    """Norm, softmax and reductions of short and long rows."""
    from detcheck.kernels.triton import norm, reduce, softmax

    for length in (576, 151936):
        x = empty(64, length, dtype=torch.bfloat16)
        with recorded(norm, reduce, softmax) as launches:
            norm.fused_rms_norm(x, [length], x[0], 1e-6)
            reduce.mean_dims(x.float(), [-1], True)
            softmax.softmax(x, -1, False)
            softmax.log_softmax(x.float(), -1, False)
        names = ("rms_norm", "mean", "softmax", "log_softmax")
        for name, launch in zip(names, launches, strict=True):
            yield f"{name} length={length}", launch


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def binaries_for_any_load() -> dict[str, int]:
    """How many binaries a linear layer and attention need over loads, one tile each."""
    from detcheck.kernels.triton import attention, configs, matmul

    weight = empty(1, 4096, 4096, dtype=torch.bfloat16).transpose(1, 2)
    bounds = empty(2, dtype=torch.int32)
    with recorded(attention, matmul) as launches:
        for load in (1, 2, 15, 16, 33, 64):
            left = empty(1, load, 4096, dtype=torch.bfloat16)
            matmul.product(left, weight, None, configs.anchor(configs.HOPPER))
            query = empty(1, 32, load, 128, dtype=torch.bfloat16)
            for past in (0, 7, 16):
                key = empty(load + past, 8, 128, dtype=torch.bfloat16).transpose(0, 1)[None]
                layout = attention.Layout(load, bounds, bounds)
                attention.attention(query, key, key, layout, parallel=False)
    kernels = {launch.kernel.fn.__name__: set[str]() for launch in launches}
    for launch in launches:
        kernels[launch.kernel.fn.__name__].add(repr((specialised(launch), launch.options)))
    return {name: len(found) for name, found in kernels.items()}


def launches(sm: int) -> Iterator[tuple[str, Launch]]:
    yield from matmul_launches(sm)
    yield from attention_launches()
    yield from row_launches()


def main(*architectures: str) -> None:
    if architectures == ("loads",):
        print(json.dumps(binaries_for_any_load()))
        return
    for sm in map(int, architectures or ("80", "90")):
        for name, launch in launches(sm):
            print(json.dumps(asdict(compile_launch(name, launch, sm))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
