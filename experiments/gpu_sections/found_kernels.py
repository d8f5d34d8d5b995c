"""Whether Triton's cache on disk holds the kernels already."""

from __future__ import annotations

from typing import Any

MISSING = 4
"""Exit code of a process that met a kernel that was not compiled yet."""


def exit_at_a_missing_one() -> None:
    """Let Triton end this process when it has compiled a kernel that it did not find."""
    from triton import knobs

    knobs.compilation.listener = exit_if_compiled


def exit_if_compiled(*, cache_hit: bool, **_: Any) -> None:
    """Triton's listener: hears of each kernel, compiled or found."""
    if not cache_hit:
        raise SystemExit(MISSING)
