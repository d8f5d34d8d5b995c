"""Batch-invariant normalisation on the CPU.

RMSNorm, written out or called as `rms_norm`, consists of pow, mean (family `reduce`), rsqrt and
products. Layer normalisation gives each row to one thread already. So only rsqrt in half precision
needs a kernel: the stock vector kernel rounds once, the scalar one twice, and the number of rows
decides which of the two computes a row. In float32 both are correctly rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.pointwise import in_place, in_whole_vectors

_rsqrt = in_whole_vectors("rsqrt", frozenset((torch.bfloat16, torch.float16)))

KERNELS: dict[str, Callable[..., Any]] = {"rsqrt": _rsqrt, "rsqrt_": in_place(_rsqrt)}
"""Overrides by aten op."""
