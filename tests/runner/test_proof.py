"""Proof of the kernels, kept through interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import conditions_of

from detcheck import load, resume, run
from detcheck.evidence import KernelsProof
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.rundir import ConditionRecord

from .measured import EXPERIMENT, Engine, Recorder


def test_the_proof_of_each_kernels_setting_is_kept(tmp_path: Path) -> None:
    measured = run(EXPERIMENT, out=tmp_path / "run", engine=Engine(missing=("attention",)))
    assert measured.proofs == {
        STOCK: KernelsProof(STOCK, {}),
        BATCH_INVARIANT: KernelsProof(
            BATCH_INVARIANT, {"scripted": 1}, ("attention",), self_check="passed"
        ),
    }
    assert load(measured.path).proofs == measured.proofs


@pytest.mark.parametrize(("before", "after"), [((), ("matmul",)), (("matmul",), ())])
def test_a_problem_of_either_part_of_a_resumed_run_is_kept(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    engine = Engine(missing=before, fail_with={("p0/batch-invariant/b4", 1): KeyboardInterrupt()})
    run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    resumed = resume(tmp_path / "run", engine=Engine(missing=after))
    assert resumed.proofs[BATCH_INVARIANT].missing == ("matmul",)
    assert not resumed.proofs[BATCH_INVARIANT].complete


def test_two_parts_without_a_problem_are_proof(tmp_path: Path) -> None:
    engine = Engine(fail_with={("p0/batch-invariant/b4", 1): KeyboardInterrupt()})
    run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    proof = resume(tmp_path / "run", engine=Engine()).proofs[BATCH_INVARIANT]
    assert proof == KernelsProof(BATCH_INVARIANT, {"scripted": 2}, (), "passed")


class Forgetful(Engine):
    """Knows of kernels only what it has run itself, as the real engines do."""

    def proof(self, kernels: str) -> KernelsProof:
        if any(kernels in condition_id for condition_id, _ in self.asked):
            return super().proof(kernels)
        return KernelsProof(kernels, {}, ("scripted",))


def test_resuming_after_the_last_trial_keeps_the_proof(tmp_path: Path) -> None:
    class StopAtTheEnd(Recorder):
        def trial_finished(self, index: int, record: ConditionRecord, distinct: int) -> None:
            if record.completed == record.asked and index == len(conditions_of(EXPERIMENT)) - 1:
                raise KeyboardInterrupt

    stopped = run(EXPERIMENT, out=tmp_path / "run", engine=Forgetful(), listener=StopAtTheEnd())
    assert not stopped.complete
    engine = Forgetful()
    resumed = resume(tmp_path / "run", engine=engine)
    assert (resumed.complete, engine.asked) == (True, [])
    assert resumed.proofs[BATCH_INVARIANT].complete
