"""Experiment × engine → run directory: what is planted comes out, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from recorded import small_experiment

from detcheck import Experiment, Run, environment, load, resume, run, runner
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import (
    MeasurementError,
    ModelError,
    OutOfMemory,
    RunDirectoryError,
    StorageError,
)
from detcheck.experiment import BATCH_INVARIANT, STOCK
from detcheck.rundir import (
    COMPLETIONS_FILE,
    VARIANTS_FILE,
    ConditionRecord,
    KernelsProof,
    RunWriter,
)
from detcheck.runner import Listener
from detcheck.traffic import Trial, plan_trials

PLANTED = (Planted(5, 3, rate=0.4), Planted(9, 2, min_batch_size=8, rate=0.5, gap=0.01))
EXPERIMENT = small_experiment(completions=30, batch_sizes=(1, 4, 8), prompts=("Why?", "How?"))
FIRST, LAST = ("p0/stock/b1", 0), ("p1/batch-invariant/b8", 1)
MIDDLE = (("p0/batch-invariant/b1", 1), ("p0/stock/b4", 2), ("p1/stock/b1", 0))


class Engine(ScriptedEngine):
    """Plants PLANTED; remembers what it was asked and whether it was closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(PLANTED, noise=0.1, **options)
        self.asked: list[tuple[str, int]] = []
        self.closed = False

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        self.asked.append((trial.condition.condition_id, trial.index))
        return super().run_trial(trial, on_tokens)

    def close(self) -> None:
        self.closed = True


class Recorder(Listener):
    """Writes down every call, in short."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def run_started(self, path: Path, conditions: list[ConditionRecord]) -> None:
        self.calls.append(("run", path.name, len(conditions)))

    def condition_started(self, index: int, record: ConditionRecord) -> None:
        self.calls.append(("start", index, record.status, record.completed))

    def tokens_generated(self, index: int, tokens: int) -> None:
        self.calls.append(("tokens", index, tokens))

    def trial_finished(self, index: int, record: ConditionRecord, distinct: int) -> None:
        self.calls.append(("trial", index, record.trials, distinct))

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        self.calls.append(("end", index, record.status))

    def interrupted(self) -> None:
        self.calls.append(("interrupted",))


@pytest.fixture(autouse=True)
def no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here; waiting for the disk is most of what these tests would do."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """EXPERIMENT, undisturbed."""
    return run(EXPERIMENT, tmp_path_factory.mktemp("whole") / "run", engine=Engine())


@pytest.fixture
def interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def lines(run: Run) -> dict[str, bytes]:
    """The two files that hold what was measured. They hold no times."""
    return {name: (run.path / name).read_bytes() for name in (COMPLETIONS_FILE, VARIANTS_FILE)}


def counts(run: Run) -> Counter[tuple[str, str | None]]:
    """Completions by (condition, fingerprint)."""
    table = run.completions
    return Counter(
        (
            run.conditions[condition].condition_id,
            None if variant < 0 else run.variants[variant].fingerprint,
        )
        for condition, variant in zip(table.condition, table.variant, strict=True)
    )


def by_id(run: Run) -> dict[str, ConditionRecord]:
    return {record.condition_id: record for record in run.conditions}


def assert_same(measured: Run, whole: Run) -> None:
    """Nothing tells that `measured` was disturbed, but the order where one condition failed."""
    assert measured.complete
    assert counts(measured) == counts(whole)
    assert measured.conditions == whole.conditions
    assert measured.summary == whole.summary
    assert {v.fingerprint for v in measured.variants} == {v.fingerprint for v in whole.variants}


# What is planted comes out


def test_a_planted_divergence_is_in_the_summary_exactly(tmp_path: Path) -> None:
    experiment = small_experiment(completions=23, batch_sizes=(1, 4))
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=4)])
    measured = run(experiment, tmp_path / "run", engine=engine)
    share = {c.batch_size: c.completions for c in experiment.conditions()}
    stock, invariant = measured.summary
    assert (stock["kernels"], invariant["kernels"]) == (STOCK, BATCH_INVARIANT)
    assert (stock["completions"], invariant["completions"]) == (23, 23)
    assert (stock["distinct"], invariant["distinct"]) == (2, 1)
    assert (stock["first_divergence"], invariant["first_divergence"]) == (5, None)
    assert stock["most_common"] == max(share.values()) == share[4]
    assert invariant["most_common"] == 23
    assert stock["flips"] == {"tie": 1, "near tie": 0, "confident": 0, "unknown": 0}
    assert stock["tokens_per_second"] == pytest.approx(1000)
    assert invariant["relative_cost"] == pytest.approx(1)
    assert measured.complete
    assert measured.finished is not None


def test_every_completion_of_the_engine_is_in_the_run_and_no_other(whole: Run) -> None:
    engine = Engine()
    expected = Counter(
        (condition.condition_id, completion.fingerprint)
        for condition in EXPERIMENT.conditions()
        for trial in plan_trials(EXPERIMENT, condition)
        for _, completion in engine.run_trial(trial).completions
    )
    assert counts(whole) == expected
    assert len({fingerprint for _, fingerprint in expected}) > 4
    assert counts(load(whole.path)) == expected


def test_what_is_returned_is_what_is_on_disk(whole: Run) -> None:
    stored = load(whole.path)
    assert stored.summary == whole.summary
    assert (stored.finished, stored.conditions) == (whole.finished, whole.conditions)
    assert stored.experiment == EXPERIMENT
    assert stored.environment["packages"]["detcheck"]


def test_conditions_are_measured_in_the_order_of_the_grid(tmp_path: Path) -> None:
    engine = Engine()
    run(EXPERIMENT, tmp_path / "run", engine=engine)
    assert engine.asked == [
        (condition.condition_id, trial.index)
        for condition in EXPERIMENT.conditions()
        for trial in plan_trials(EXPERIMENT, condition)
    ]
    assert (engine.asked[0], engine.asked[-1]) == (FIRST, LAST)
    assert engine.closed


def test_a_run_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measured = run(EXPERIMENT)
    assert measured.path == Path("results/runs") / measured.run_id
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", measured.run_id)


def test_failed_requests_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    measured = run(EXPERIMENT, tmp_path / "run", engine=Engine(fail_rate=0.3))
    failed = sum(record.failed for record in measured.conditions)
    assert 0 < failed < 120
    assert failed == int((measured.completions.variant < 0).sum())
    assert sum(record.completed for record in measured.conditions) == 120 - failed
    assert sum(row["failed"] for row in measured.summary) == failed
    assert measured.complete


# Proof of the kernels


def test_the_proof_of_each_kernels_setting_is_kept(tmp_path: Path) -> None:
    measured = run(EXPERIMENT, tmp_path / "run", engine=Engine(missing=("attention",)))
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
    run(EXPERIMENT, tmp_path / "run", engine=engine)
    resumed = resume(tmp_path / "run", engine=Engine(missing=after))
    assert resumed.proofs[BATCH_INVARIANT].missing == ("matmul",)
    assert not resumed.proofs[BATCH_INVARIANT].complete


def test_two_parts_without_a_problem_are_proof(tmp_path: Path) -> None:
    engine = Engine(fail_with={("p0/batch-invariant/b4", 1): KeyboardInterrupt()})
    run(EXPERIMENT, tmp_path / "run", engine=engine)
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
            if record.completed == record.asked and index == len(EXPERIMENT.conditions()) - 1:
                raise KeyboardInterrupt

    stopped = run(EXPERIMENT, tmp_path / "run", engine=Forgetful(), listener=StopAtTheEnd())
    assert not stopped.complete
    engine = Forgetful()
    resumed = resume(tmp_path / "run", engine=engine)
    assert (resumed.complete, engine.asked) == (True, [])
    assert resumed.proofs[BATCH_INVARIANT].complete


# Ctrl-C


@pytest.mark.parametrize("at", [FIRST, *MIDDLE, LAST])
def test_an_interrupted_run_is_loadable_and_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: Run, at: tuple[str, int]
) -> None:
    engine, heard = Engine(fail_with={at: KeyboardInterrupt()}), Recorder()
    stopped = run(EXPERIMENT, tmp_path / "run", engine=engine, listener=heard)
    assert (stopped.complete, stopped.finished, engine.closed) == (False, None, True)
    assert heard.calls[-1] == ("interrupted",)
    assert sum(record.trials for record in stopped.conditions) == len(engine.asked) - 1
    assert by_id(stopped)[at[0]].status == "running"
    assert load(stopped.path).summary == stopped.summary
    assert sum(row["completions"] for row in stopped.summary) == len(stopped.completions)

    rest = Engine()
    resumed = resume(tmp_path / "run", engine=rest)
    assert engine.asked[:-1] + rest.asked == whole_plan()
    assert_same(resumed, whole)
    assert lines(resumed) == lines(whole)
    assert resumed.run_id == stopped.run_id


def whole_plan() -> list[tuple[str, int]]:
    return [
        (condition.condition_id, trial.index)
        for condition in EXPERIMENT.conditions()
        for trial in plan_trials(EXPERIMENT, condition)
    ]


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path, whole: Run) -> None:
    run(EXPERIMENT, tmp_path / "run", engine=Engine(fail_with={FIRST: KeyboardInterrupt()}))
    for at in MIDDLE:
        engine = Engine(fail_with={at: KeyboardInterrupt()})
        assert not resume(tmp_path / "run", engine=engine).complete
    resumed = resume(tmp_path / "run", engine=Engine())
    assert_same(resumed, whole)
    assert lines(resumed) == lines(whole)


def test_resuming_a_finished_run_asks_nothing(tmp_path: Path, whole: Run) -> None:
    run(EXPERIMENT, tmp_path / "run", engine=Engine())
    engine = Engine()
    assert_same(resume(tmp_path / "run", engine=engine), whole)
    assert engine.asked == []


@pytest.fixture
def ctrl_c_in_a_commit(interrupt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the sixth commit, between the files and what the writer knows of them."""
    replace, commits = RunWriter._commit, iter(range(1000))

    def commit(self: RunWriter, trial: Any) -> None:
        if next(commits) == 5:
            monkeypatch.setattr(self.__class__, "_replace_run_file", replaced_and_interrupted)
        replace(self, trial)

    replace_run_file = RunWriter._replace_run_file

    def replaced_and_interrupted(self: RunWriter, *args: Any) -> None:
        monkeypatch.setattr(RunWriter, "_replace_run_file", replace_run_file)
        replace_run_file(self, *args)
        self._seals = args[1]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunWriter, "_commit", commit)


def test_ctrl_c_waits_for_the_commit(tmp_path: Path, whole: Run, ctrl_c_in_a_commit: None) -> None:
    stopped = run(EXPERIMENT, tmp_path / "run", engine=Engine())
    assert sum(record.trials for record in stopped.conditions) == 6
    resumed = resume(tmp_path / "run", engine=Engine())
    assert lines(resumed) == lines(whole)


def test_ctrl_c_that_did_not_wait_would_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c_in_a_commit: None
) -> None:
    monkeypatch.setattr(runner, "_uninterrupted", nullcontext)
    with pytest.raises(RunDirectoryError, match="edited"):
        run(EXPERIMENT, tmp_path / "run", engine=Engine())


def test_a_run_in_a_thread_is_measured_too(tmp_path: Path, whole: Run) -> None:
    measured: list[Run] = []
    thread = threading.Thread(
        target=lambda: measured.append(run(EXPERIMENT, tmp_path / "run", engine=Engine()))
    )
    thread.start()
    thread.join(60)
    assert_same(measured[0], whole)


# Faults of the engine


def test_out_of_memory_keeps_what_was_measured_and_spares_larger_batches(
    tmp_path: Path, whole: Run
) -> None:
    error = OutOfMemory("Out of memory at batch size 4.")
    measured = run(
        EXPERIMENT, tmp_path / "run", engine=Engine(fail_with={("p0/stock/b4", 2): error})
    )
    records = by_id(measured)
    at_fault = records["p0/stock/b4"]
    assert (at_fault.status, at_fault.trials, at_fault.completed) == ("failed", 2, 8)
    assert at_fault.error == "Out of memory at batch size 4."
    skipped = ["p0/stock/b8", "p1/stock/b4", "p1/stock/b8"]
    for condition_id in skipped:
        assert (records[condition_id].status, records[condition_id].trials) == ("failed", 0)
        assert records[condition_id].error == "Not tried: memory ran out at batch size 4 before."
    others = set(records) - {"p0/stock/b4", *skipped}
    assert {records[condition_id].status for condition_id in others} == {"done"}
    assert (measured.complete, measured.finished is not None) == (False, True)
    assert_same(resume(tmp_path / "run", engine=Engine()), whole)


def test_another_fault_ends_its_condition_only(tmp_path: Path, whole: Run) -> None:
    error = MeasurementError("The engine failed.")
    engine = Engine(fail_with={("p0/stock/b4", 0): error})
    measured = run(EXPERIMENT, tmp_path / "run", engine=engine)
    failed = [r for r in measured.conditions if r.status != "done"]
    assert [(r.condition_id, r.status, r.error) for r in failed] == [
        ("p0/stock/b4", "failed", "The engine failed.")
    ]
    assert not measured.complete
    assert_same(resume(tmp_path / "run", engine=Engine()), whole)


def test_a_bug_ends_the_run_and_loses_nothing(tmp_path: Path, whole: Run) -> None:
    engine = Engine(fail_with={MIDDLE[1]: ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(EXPERIMENT, tmp_path / "run", engine=engine)
    assert engine.closed
    kept = load(tmp_path / "run")
    assert sum(record.trials for record in kept.conditions) == len(engine.asked) - 1 > 0
    assert lines(resume(tmp_path / "run", engine=Engine())) == lines(whole)


# Faults of the disk


@pytest.mark.parametrize("after", [1, 2, 3, 4, 20, 41])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    synced = iter(range(1000))

    def full(file: int) -> None:
        if next(synced) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")

    engine = Engine()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"no space left on device.*--resume"):
            run(EXPERIMENT, tmp_path / "run", engine=engine)
    assert engine.closed
    kept = load(tmp_path / "run")
    trials = sum(record.trials for record in kept.conditions)
    assert trials in (len(engine.asked) - 1, len(engine.asked))
    assert lines(resume(tmp_path / "run", engine=Engine())) == lines(whole)


def refusing(experiment: Experiment, connection: object = None) -> ScriptedEngine:
    raise ModelError("There is no model.")


def test_a_folder_in_use_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "create", refusing)
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunDirectoryError, match="not empty"):
            run(EXPERIMENT, path)
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        run(EXPERIMENT, tmp_path / "mine.txt" / "run")


def test_a_model_that_is_not_there_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "create", refusing)
    with pytest.raises(ModelError):
        run(EXPERIMENT, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_closed_where_the_run_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    monkeypatch.setattr(runner, "check_vacant", lambda path: None)
    engine = Engine()
    with pytest.raises(RunDirectoryError, match="not empty"):
        run(EXPERIMENT, tmp_path, engine=engine)
    assert engine.closed


# What cannot be resumed


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    run(EXPERIMENT, tmp_path / "run", engine=Engine(fail_with={MIDDLE[1]: KeyboardInterrupt()}))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completions": 31}, "was run with completions 30, not 31: resume it without that option"),
        ({"batch_sizes": (1, 4)}, "was run with batch sizes 1, 4, 8, not 1, 4:"),
        ({"prompts": ("Why?", "Who\n?")}, r"was run with prompts Why?, How?, not Why?, Who\n?:"),
        ({"model": "other"}, "was run with model unset, not other:"),
        ({"seed": 1}, "was run with seed 0, not 1:"),
    ],
)
def test_a_changed_experiment_is_refused(stopped: Path, change: dict[str, Any], words: str) -> None:
    changed = Experiment.from_dict(EXPERIMENT.to_dict() | change)
    with pytest.raises(RunDirectoryError, match=re.escape(words)):
        resume(stopped, experiment=changed, engine=Engine())


def test_the_same_experiment_is_not(stopped: Path, whole: Run) -> None:
    same = Experiment.from_dict(EXPERIMENT.to_dict())
    assert lines(resume(stopped, experiment=same, engine=Engine())) == lines(whole)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that moves the process to a machine that differs in the fields given."""
    here = environment.collect("auto")

    def elsewhere(**fields: Any) -> None:
        monkeypatch.setattr(environment, "collect", lambda device: here | fields)

    return elsewhere


def test_a_changed_environment_is_refused(stopped: Path, elsewhere: Callable[..., None]) -> None:
    elsewhere(variables={"MKL_CBWR": "AVX2"})
    engine = Engine()
    with pytest.raises(RunDirectoryError, match=r"changed \(MKL_CBWR unset → AVX2\): start a new"):
        resume(stopped, engine=engine)
    assert (engine.asked, engine.closed) == ([], True)


def test_what_cannot_change_an_answer_may_change(
    stopped: Path, elsewhere: Callable[..., None], whole: Run
) -> None:
    elsewhere(python="3.99.0")
    assert lines(resume(stopped, engine=Engine())) == lines(whole)


def test_a_run_that_is_still_being_written_is_refused(tmp_path: Path, whole: Run) -> None:
    class Intruder(Listener):
        def condition_finished(self, index: int, record: ConditionRecord) -> None:
            with pytest.raises(RunDirectoryError, match="Another process is writing"):
                resume(tmp_path / "run", engine=Engine())

    measured = run(EXPERIMENT, tmp_path / "run", engine=Engine(), listener=Intruder())
    assert lines(measured) == lines(whole)


# Who listens


def test_a_listener_hears_everything_in_order(tmp_path: Path) -> None:
    experiment = small_experiment(completions=9, batch_sizes=(1, 4), kernels=(STOCK,))
    engine, heard = ScriptedEngine([Planted(5, 3)]), Recorder()
    run(experiment, tmp_path / "run", engine=engine, listener=heard)
    one, four = (
        [
            call
            for trial in plan_trials(experiment, condition)
            for call in (
                ("tokens", index, 24 * trial.num_probes),
                ("trial", index, trial.index + 1, distinct),
            )
        ]
        for (index, condition), distinct in zip(
            enumerate(experiment.conditions()), (1, 2), strict=True
        )
    )
    assert heard.calls == [
        ("run", "run", 2),
        ("start", 0, "running", 0),
        *one,
        ("end", 0, "done"),
        ("start", 1, "running", 0),
        *four,
        ("end", 1, "done"),
    ]


def test_a_listener_of_a_resumed_run_counts_on(tmp_path: Path, whole: Run) -> None:
    heard, before, after = Recorder(), Recorder(), Recorder()
    run(EXPERIMENT, tmp_path / "whole", engine=Engine(), listener=heard)
    engine = Engine(fail_with={MIDDLE[1]: KeyboardInterrupt()})
    run(EXPERIMENT, tmp_path / "run", engine=engine, listener=before)
    resume(tmp_path / "run", engine=Engine(), listener=after)
    assert ("start", 2, "running", 8) in after.calls
    trials = [call for call in before.calls + after.calls if call[0] == "trial"]
    assert trials == [call for call in heard.calls if call[0] == "trial"]


def test_a_listener_hears_of_what_failed(tmp_path: Path) -> None:
    heard = Recorder()
    error = OutOfMemory("Out of memory at batch size 4.")
    engine = Engine(fail_with={("p1/stock/b4", 0): error})
    run(EXPERIMENT, tmp_path / "run", engine=engine, listener=heard)
    assert [call for call in heard.calls if call[-1] == "failed"] == [
        ("end", 8, "failed"),
        ("end", 10, "failed"),
    ]
    assert ("start", 10, "running", 0) not in heard.calls
