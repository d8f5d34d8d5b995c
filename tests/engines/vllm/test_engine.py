"""The engine `vllm` with a fake worker in the place of vLLM, and its messages about faults."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from asking import Asked, ask, conditions_of

from detcheck import models
from detcheck.engines.vllm import engine as engine_module
from detcheck.engines.vllm import process as process_module
from detcheck.engines.vllm.engine import VllmEngine, environment, threads_bind
from detcheck.engines.vllm.process import WorkerDied, WorkerProcess
from detcheck.errors import MeasurementError, ModelError, OutOfMemory, UsageError
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.traffic import Trial, plan_trials

STOCK_ONLY = (STOCK,)


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """vLLM appears to be installed, its worker is `fake_worker`, and the model is a folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "logs"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(engine_module, "MODULE", "fake_worker")
    monkeypatch.setattr(engine_module, "_check_installed", lambda: None)
    monkeypatch.setattr(models, "source", lambda name, dtype="auto", revision=None: str(tmp_path))
    monkeypatch.setattr(models, "num_attention_heads", lambda *_, **__: 9)


@pytest.fixture
def misbehave(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda how: monkeypatch.setenv("FAKE", how)


def experiment(**fields: Any) -> Asked:
    defaults: dict[str, Any] = {
        "engine": "vllm",
        "kernels": STOCK_ONLY,
        "prompts": ("A", "BB"),
        "batch_sizes": (1, 4),
        "completions": 8,
        "max_new_tokens": 6,
    }
    return ask(**defaults | fields)


def first_trials(asked: Asked) -> list[Trial]:
    return [plan_trials(asked.experiment, condition)[0] for condition in conditions_of(*asked)]


def test_answers_come_back_with_the_batches_of_vllms_own_scheduler():
    asked = experiment()
    engine = VllmEngine(*asked)
    try:
        heard: list[int] = []
        result = engine.run_trial(
            first_trials(asked)[1], lambda tokens, _=None: heard.append(tokens)
        )
    finally:
        engine.close()
    assert heard == [1]
    assert [position for position, _ in result.completions] == [0, 1, 2, 3]
    assert result.generated_tokens == 24
    completion = result.completions[0][1]
    assert completion.token_ids == (1, 2, 3, 4, 5, 6)
    assert completion.observed_batch is not None
    assert completion.observed_batch.rows_max == 4
    assert completion.top_two is not None
    assert result.load is not None
    assert (result.load.preemptions, result.load.prefix_cache_hits) == (2, 3)


def test_sampled_tokens_have_logprobs_and_no_runner_up():
    """A trainer's are compared with them; the sampled token need not be the best one."""
    asked = experiment(temperature=1.0)
    engine = VllmEngine(*asked)
    try:
        (_, completion), *_ = engine.run_trial(first_trials(asked)[0]).completions
    finally:
        engine.close()
    assert completion.top_two.logprobs == (-1.5,) * 6
    assert completion.top_two.runner_up_token_ids is None
    assert all(math.isnan(gap) for gap in completion.top_two.gaps)


def test_each_kernels_setting_and_size_has_a_worker_and_only_one_runs(monkeypatch):
    started: list[tuple[str, str]] = []
    alive: list[WorkerProcess] = []

    class Counted(WorkerProcess):
        def __init__(self, module, variables):
            assert all(worker._process.poll() is not None for worker in alive)
            super().__init__(module, variables)
            alive.append(self)
            started.append(
                (variables["VLLM_BATCH_INVARIANT"], variables["VLLM_CPU_OMP_THREADS_BIND"])
            )

    monkeypatch.setattr(engine_module, "WorkerProcess", Counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    asked = experiment(kernels=(STOCK, BATCH_INVARIANT), tensor_parallel=(1, 3))
    engine = VllmEngine(*asked)
    for trial in first_trials(asked):
        engine.run_trial(trial)
    engine.close()
    assert started == [  # the first one tries whether vLLM can run the kernels
        ("1", "0,1"),
        *(("0", "0,1"), ("1", "0,1"), ("0", "0|1|0"), ("1", "0|1|0")),
    ]
    proof = engine.proof(BATCH_INVARIANT)
    assert proof.complete
    assert proof.overrides == {"VLLM_BATCH_INVARIANT": 8}
    assert engine.proof(STOCK).complete
    assert all(worker._process.poll() is not None for worker in alive)


def test_the_model_is_identified_by_its_worker_and_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    engine = VllmEngine(*experiment(model="a/b", revision="abc", traffic="mixed"))
    engine.close()
    identity = engine.model_identity()
    assert (identity.revision, identity.dtype) == ("abc", "bfloat16")
    assert identity.prompt_digests == ("sha256:A", "sha256:BB"), "fillers are no prompts"
    assert identity.decoding == {"top_k": "20, left out"}
    assert identity.weights_digest is not None


def test_cold_and_warm_prefix_caches_are_places_of_one_worker():
    asked = experiment(prefix_cache=("cold", "warm"), tensor_parallel=(1, 3))
    names = ("tp1 cold cache", "tp1 warm cache", "tp3 cold cache", "tp3 warm cache")
    assert asked.target.placements == names
    assert asked.target.traits.varies_prefix_cache
    engine = VllmEngine(*asked)
    try:
        hits = {
            trial.condition.placement: engine.run_trial(trial).load.prefix_cache_hits
            for trial in first_trials(asked)
        }
    finally:
        engine.close()
    assert hits == dict(zip(names, (0, 3, 0, 3), strict=True))


def test_a_warm_cache_that_answers_nothing_is_no_measurement(misbehave):
    misbehave("keeps no blocks")
    asked = experiment(prefix_cache=("warm",))
    engine = VllmEngine(*asked)
    try:
        with pytest.raises(MeasurementError, match="counted 0 prompt tokens from a warm prefix"):
            engine.run_trial(first_trials(asked)[0])
    finally:
        engine.close()


def test_a_warm_request_that_computed_its_whole_prompt_is_no_measurement(misbehave):
    """The counter of the trial alone would not show it: the first request was warm."""
    misbehave("evicts")
    asked = experiment(prefix_cache=("warm",))
    engine = VllmEngine(*asked)
    several = next(trial for trial in first_trials(asked) if trial.condition.batch_size > 1)
    try:
        with pytest.raises(MeasurementError, match=r"of \d+ requests took no prompt token"):
            engine.run_trial(several)
    finally:
        engine.close()


def test_a_mode_that_vllm_does_not_report_is_not_proved(misbehave):
    misbehave("forgets the mode")
    asked = experiment(kernels=(BATCH_INVARIANT,))
    engine = VllmEngine(*asked)
    engine.run_trial(first_trials(asked)[0])
    engine.close()
    assert not engine.proof(BATCH_INVARIANT).complete


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        (
            "refuses invariance",
            ModelError,
            "vLLM does not run here with VLLM_BATCH_INVARIANT=1 (TypeError: no such kernel). "
            'Use `kernels="stock"`.',
        ),
        ("dies at start", MeasurementError, "RuntimeError: no kernel image"),
        ("too long", UsageError, "Prompt 1 is too long."),
    ],
)
def test_the_cause_of_a_failed_start_is_reported(misbehave, how, error, sentence, tmp_path):
    misbehave(how)
    with pytest.raises(error) as raised:
        VllmEngine(*experiment(kernels=(STOCK, BATCH_INVARIANT)))
    assert sentence in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_executor_that_is_refused_is_named_and_not_the_kernels(misbehave):
    misbehave("refuses ray")
    with pytest.raises(ModelError) as raised:
        VllmEngine(*experiment(kernels=(STOCK, BATCH_INVARIANT), vllm_executor="ray"))
    assert "current platform cpu does not support ray" in str(raised.value)
    assert 'Use `vllm_executor="auto"`.' in str(raised.value)
    assert "stock" not in str(raised.value)


def test_a_worker_that_hangs_at_the_start_is_ended(misbehave, monkeypatch):
    misbehave("hangs at start")
    monkeypatch.setattr(engine_module, "START_S", 0.2)
    monkeypatch.setattr(process_module, "STOP_S", 0.2)
    with pytest.raises(MeasurementError, match="sent nothing for 0 s and was stopped"):
        VllmEngine(*experiment())


def test_a_worker_that_hangs_is_ended_with_its_children(monkeypatch):
    monkeypatch.setattr(process_module, "STOP_S", 0.2)
    variables = environment(STOCK, 1) | {"FAKE": "hangs with a child"}
    worker = WorkerProcess("fake_worker", variables)
    worker.send({"tensor_parallel": 1})
    assert "ready" in worker.receive(60)
    worker.send({"requests": []})
    child = None
    while child is None:
        text = worker.printed()
        child = int(text.split()[1]) if text.endswith("\n") else None
        time.sleep(0.05)
    with pytest.raises(WorkerDied):
        worker.receive(0.1)
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("dies", MeasurementError, "vLLM ended"),
        ("dies in a word", MeasurementError, "vLLM ended"),
        ("memory", OutOfMemory, "out of memory at batch size 4"),
    ],
)
def test_after_a_lost_trial_the_engine_runs_the_next(misbehave, monkeypatch, how, error, sentence):
    misbehave(how)
    asked = experiment()
    engine = VllmEngine(*asked)
    try:
        with pytest.raises(error, match=sentence):
            engine.run_trial(first_trials(asked)[1])
        monkeypatch.delenv("FAKE")
        assert len(engine.run_trial(first_trials(asked)[1]).completions) == 4
    finally:
        engine.close()


def test_after_ctrl_c_the_engine_runs_the_next_trial():
    asked = experiment()
    engine = VllmEngine(*asked)

    def interrupt(tokens: int, _: Any = None) -> None:
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run_trial(first_trials(asked)[0], interrupt)
        assert len(engine.run_trial(first_trials(asked)[0]).completions) == 1
    finally:
        engine.close()


def test_a_request_that_vllm_ended_is_a_failure(misbehave):
    misbehave("aborts")
    asked = experiment(traffic="mixed")
    engine = VllmEngine(*asked)
    try:
        result = engine.run_trial(first_trials(asked)[1])
    finally:
        engine.close()
    assert all(completion.failed for _, completion in result.completions)
    assert result.filler_failures == {"engine": 2}
    assert result.generated_tokens == 0


def test_a_size_that_does_not_divide_the_heads_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(engine_module, "WorkerProcess", None)
    with pytest.raises(UsageError, match=r"2 does not divide .* 9 attention heads: .* 1, 3, 9"):
        VllmEngine(*experiment(tensor_parallel=(1, 2)))


def test_kernels_that_are_detchecks_own_are_refused():
    with pytest.raises(UsageError, match="are one mode"):
        VllmEngine(*experiment(kernels=("batch-invariant:matmul",)))


def test_without_vllm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install vllm"):
        VllmEngine(*experiment())


@pytest.mark.parametrize(
    ("cpus", "size", "bind"),
    [
        ([0, 1], 1, "0,1"),
        ([0, 1], 3, "0|1|0"),
        ([2, 3, 6, 7], 2, "2,3|6,7"),
        ([0, 1, 2, 3, 4], 2, "0,1|2,3"),
    ],
)
def test_ranks_get_their_own_cpus_if_there_are_enough(cpus, size, bind):
    assert threads_bind(cpus, size) == bind


def test_the_users_vllm_variables_stay_except_for_the_kernels(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    variables = environment(STOCK, 1)
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert variables["VLLM_BATCH_INVARIANT"] == "0"


def test_messages_are_lines_of_json():
    worker = WorkerProcess("fake_worker", environment(STOCK, 1))
    try:
        worker.send({"tensor_parallel": 1})
        assert worker.receive(60)["ready"]["batch_invariant"] is False
        assert json.loads(json.dumps({"prompt": "ü\n"})) == {"prompt": "ü\n"}
        worker.send({"requests": [["ü\n", 0, 2]]})
        assert worker.receive(60) == {"tokens": 1}
        assert worker.receive(60)["answers"][0]["token_ids"] == [2, 3]
    finally:
        worker.stop()
