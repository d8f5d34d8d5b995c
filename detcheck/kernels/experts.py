"""Batch-invariant experts: one implementation of transformers', whatever the model asks for.

transformers has several implementations of a mixture's experts. Its grouped and batched products
give a token other bits if the other tokens choose other experts. In the mode the grouped one runs,
with grouped products of ours (`cpu/grouped.py`, `triton/grouped.py`): it sorts tokens by expert,
multiplies each by the weight of its expert, and adds a token's experts in one order, whatever the
others chose. Versions of transformers without it, and other dtypes, take the loop (`eager`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

EXPERTS_OP = "transformers::experts"
LOOP_NAME = "eager"
"""The name of the loop in a model's config; transformers has no entry for it in its table."""
GROUPED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def experts(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    """transformers' interface for experts: its grouped implementation, else the class' own loop.

    `module` holds the experts; the arguments are those of its forward pass: hidden states
    (tokens, hidden), the indices of each token's experts (tokens, k) and their weights (tokens, k).
    """
    hidden_states = args[0] if args else kwargs["hidden_states"]
    grouped = grouped_implementation() if hidden_states.dtype in GROUPED_DTYPES else None
    if grouped is not None:
        return grouped(module, *args, **kwargs)
    forward: Any = type(module).forward
    result: torch.Tensor = forward.__wrapped__(module, *args, **kwargs)
    return result


def grouped_implementation() -> Callable[..., torch.Tensor] | None:
    """transformers' grouped implementation, or None in versions without one."""
    try:
        from transformers.integrations import moe
    except ImportError:
        return None
    found: Any = getattr(moe, "grouped_mm_experts_forward", None)
    return found


def put_in_table(entry: Callable[..., Any]) -> Callable[[], None]:
    """Let every implementation of transformers be `entry`; returns the function that undoes it.

    An implementation that the user registered may compute something else, so it stays: its ops are
    judged like those of a model's own code. Does nothing in versions of transformers without that
    interface.
    """
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError:
        return lambda: None
    table: dict[str, Any] = ExpertsInterface._global_mapping
    stock = dict(table)
    own = [name for name, function in stock.items() if _is_of_transformers(function)]
    table.update(dict.fromkeys((*own, LOOP_NAME), entry))

    def remove() -> None:
        table.clear()
        table.update(stock)

    return remove


def _is_of_transformers(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).partition(".")[0] == "transformers"
