"""A baseline and a control that the options name by a path are read, never dropped."""

from __future__ import annotations

import pytest

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.errors import RunDirectoryError, UsageError
from detcheck.gate import PASS, GateOptions, judge
from detcheck.gate.accept import accept
from detcheck.gate.baseline import write_baseline
from detcheck.gate.files import CONTROL_FOLDER
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import DIVERGING, analysed, rules


@pytest.fixture(params=["run", "file"])
def accepted(request, tmp_path):
    """Path of accepted answers of stock kernels: a run, or a file."""
    analysis = analysed(tmp_path / "accepted")
    if request.param == "file":
        write_baseline(accept(analysis, (STOCK,)).baseline, tmp_path / "accepted.json")
        return tmp_path / "accepted.json"
    return tmp_path / "accepted"


def test_the_named_baseline_holds_the_run(tmp_path, accepted):
    options = GateOptions(kernels=STOCK, baseline=accepted)
    assert judge(analysed(tmp_path / "same"), options).value == PASS
    verdict = judge(analysed(tmp_path / "other", DIVERGING), options)
    assert rules(verdict, FAIL) == {"baseline"}
    assert verdict.judged.baseline == "accepted"


def test_a_named_baseline_that_is_not_there_is_no_pass(tmp_path, good):
    with pytest.raises(UsageError, match="There is no baseline"):
        judge(good, GateOptions(baseline=tmp_path / "gone.json"))


def test_the_named_control_is_the_control(tmp_path):
    run = analysed(tmp_path / "run", kernels=(BATCH_INVARIANT,))
    analysed(tmp_path / "dead", kernels=(STOCK,), alive=False)
    verdict = judge(run, GateOptions(control=tmp_path / "dead"))
    assert rules(verdict, INCONCLUSIVE) == {"control-alive"}
    with pytest.raises(RunDirectoryError):
        judge(run, GateOptions(control=tmp_path / "gone"))


def test_the_control_in_the_folder_of_the_run_is_found(tmp_path):
    """`detcheck run` keeps the answers of a second server there."""
    run = analysed(tmp_path / "run", kernels=(BATCH_INVARIANT,))
    assert judge(run).value == PASS
    analysed(tmp_path / "run" / CONTROL_FOLDER, kernels=(STOCK,), alive=False)
    assert rules(judge(run), INCONCLUSIVE) == {"control-alive"}
