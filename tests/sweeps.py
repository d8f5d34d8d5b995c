"""Which cases of a test the fast suite runs: one of every kind, or a few. `make test` runs all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(names: str | tuple[str, ...], cases: Iterable[Any], every: int = 0, **options: Any) -> Any:
    """`pytest.mark.parametrize`, with all cases but some marked as a sweep.

    The first case stays in the fast suite, and so does each `every`-th after it, if given. If two
    of these stand on one test, a case is fast if it is fast in both.
    """
    several = not isinstance(names, str) or "," in names
    marked = [
        case if index == 0 or (every and index % every == 0) else _swept(case, several)
        for index, case in enumerate(cases)
    ]
    return pytest.mark.parametrize(names, marked, **options)


def _swept(case: Any, several: bool) -> Any:
    if hasattr(case, "marks"):  # a `pytest.param`
        return pytest.param(*case.values, id=case.id, marks=(*case.marks, pytest.mark.sweep))
    return pytest.param(*(case if several else (case,)), marks=pytest.mark.sweep)
