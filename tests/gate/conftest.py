"""Fixtures of the gate's tests."""

from __future__ import annotations

from itertools import count

import pytest

from detcheck.gate import GateOptions, Verdict, judge
from detcheck.kernels.settings import BATCH_INVARIANT

from .runs import analysed


@pytest.fixture
def verdict_on(tmp_path):
    """Returns a function: an engine, options of the gate and of the run -> the verdict."""

    numbers = count()

    def judged(engine=None, *, kernels=BATCH_INVARIANT, run=None, **options) -> Verdict:
        fields = set(GateOptions.__struct_fields__) - {"kernels"}
        asked = {name: options.pop(name) for name in fields & options.keys()}
        path = tmp_path / f"run{next(numbers)}"
        analysis = analysed(path, engine, **(run or {}), **options)
        return judge(analysis, GateOptions(kernels=kernels, **asked))

    return judged


@pytest.fixture
def good(tmp_path):
    return analysed(tmp_path / "good")
