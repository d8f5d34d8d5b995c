"""The mode's self-check on the GPU: is a row alone what it is in a batch, through the public ops?

It takes a moment only; `experiments/gpu.py` checks the shapes of real models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from detcheck.kernels.self_check import depends_on_batch, normal

DTYPES = (torch.bfloat16, torch.float32)


def _matmul() -> str | None:
    for dtype in DTYPES:
        rows, weight = _random(1, 65, 4096).to(dtype), _random(2, 256, 4096).to(dtype)
        whole = F.linear(rows, weight)
        for count in (1, 17, 64):
            if not torch.equal(F.linear(rows[:count], weight), whole[:count]):
                return f"matmul in {dtype} on the GPU gives {count} rows other results than 65 rows"
    return None


def _attention() -> str | None:
    query = _random(3, 4, 6, 1, 64).bfloat16()
    key, value = _random(4, 2, 4, 2, 700, 64).bfloat16()
    if depends_on_batch(query, key, value):
        return "attention on the GPU gives a request alone another result than in a batch of 4"
    return None


def _norm() -> str | None:
    weight = _random(5, 4096)
    return _row_alone("rms_norm", lambda x: F.rms_norm(x, (4096,), weight, 1e-6)) or _row_alone(
        "layer_norm", lambda x: F.layer_norm(x, (4096,), weight, weight)
    )


def _row_alone(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """A sentence if a row alone differs from the same row among 33; else None."""
    x = _random(6, 33, 4096)
    whole = function(x)
    for row in (0, 16, 32):
        if not torch.equal(function(x[row : row + 1].clone())[0], whole[row]):
            return f"{name} on the GPU gives a row alone another result than in a batch of 33"
    return None


def _random(seed: int, *shape: int) -> torch.Tensor:
    return _on(f"cuda:{torch.cuda.current_device()}", seed, *shape)


@cache
def _on(device: str, seed: int, *shape: int) -> torch.Tensor:
    """Kept, since a mode may be entered before every trial; 11 MB in all."""
    with torch.inference_mode(False), _disable_current_modes():
        return normal(seed, *shape).to(device)


CHECKS: dict[str, Callable[[], str | None]] = {
    "matmul": _matmul,
    "attention": _attention,
    "norm": _norm,
    "softmax": partial(_row_alone, "log_softmax", lambda x: x.log_softmax(-1)),
    "reduce": partial(_row_alone, "mean", lambda x: x.pow(2).mean(-1)),
}
