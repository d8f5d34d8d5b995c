"""Batch-invariant normalisation on the CPU.

RMSNorm, written out or through `rms_norm`, decomposes here into pow, mean (family `reduce`),
rsqrt and products; layer_norm gives each row to one thread. What is left to mend is rsqrt in half
precision: the vector kernel rounds once, the scalar one twice, and which of them a row's value
meets depends on the number of rows. In float32 both are exact to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.pointwise import in_place, in_whole_vectors

_rsqrt = in_whole_vectors("rsqrt", frozenset((torch.bfloat16, torch.float16)))

KERNELS: dict[str, Callable[..., Any]] = {"rsqrt": _rsqrt, "rsqrt_": in_place(_rsqrt)}
"""Overrides by aten op."""
