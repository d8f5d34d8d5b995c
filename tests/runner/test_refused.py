"""What cannot be started, and what cannot be resumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detcheck import Experiment, Run, environment, resume, run, runner
from detcheck.engines.scripted import ScriptedEngine
from detcheck.errors import ModelError, RunDirectoryError
from detcheck.evidence import ModelIdentity
from detcheck.listener import Listener
from detcheck.rundir import ConditionRecord
from detcheck.targets import InProcess, Served

from .measured import EXPERIMENT, FIRST, Engine, lines


def refusing(*_: object) -> ScriptedEngine:
    raise ModelError("There is no model.")


def test_a_folder_in_use_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "open_engine", refusing)
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunDirectoryError, match="not empty"):
            run(EXPERIMENT, out=path)
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        run(EXPERIMENT, out=tmp_path / "mine.txt" / "run")


def test_a_model_that_is_not_there_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "open_engine", refusing)
    with pytest.raises(ModelError):
        run(EXPERIMENT, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_closed_where_the_run_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    monkeypatch.setattr(runner, "check_vacant", lambda path: None)
    engine = Engine()
    with pytest.raises(RunDirectoryError, match="not empty"):
        run(EXPERIMENT, out=tmp_path, engine=engine)
    assert engine.closed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completions": 31}, "was run with completions 30, not 31: resume it without that option"),
        ({"batch_sizes": (1, 4)}, "was run with batch sizes 1, 4, 8, not 1, 4:"),
        ({"prompts": ("Why?", "Who\n?")}, "was run with prompts Why?, How?, not Why?, Who↵?:"),
        ({"load_seed": 1}, "was run with load seed 0, not 1:"),
    ],
)
def test_a_changed_experiment_is_refused(stopped: Path, change: dict[str, Any], words: str) -> None:
    changed = Experiment.from_dict(EXPERIMENT.to_dict() | change)
    with pytest.raises(RunDirectoryError, match=re.escape(words)):
        resume(stopped, experiment=changed, engine=Engine())


def test_a_changed_target_is_refused(stopped: Path) -> None:
    for target, words in (
        (InProcess(), "engine scripted, not continuous:"),
        (Served(endpoints=("http://h/v1",)), "engine scripted, not openai:"),
    ):
        with pytest.raises(RunDirectoryError, match=re.escape(words)):
            resume(stopped, target=target, engine=Engine())


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("weights_digest", "the model's weights digest has changed"),
        ("revision", "the model's revision has changed"),
        ("dtype", "the model's dtype has changed"),
        ("prompt_digests", "the prompts have become other token ids"),
    ],
)
def test_another_model_or_other_prompt_ids_are_refused(
    tmp_path: Path, field: str, words: str
) -> None:
    """Other ids come from a chat template that holds today's date, for one."""
    before, after = (
        ModelIdentity(name="m", **{field: (value,) if field == "prompt_digests" else value})
        for value in ("sha256:1", "sha256:2")
    )
    engine = Engine(fail_with={FIRST: KeyboardInterrupt()}, identity=before)
    run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    with pytest.raises(RunDirectoryError, match=words):
        resume(tmp_path / "run", engine=Engine(identity=after))
    assert resume(tmp_path / "run", engine=Engine(identity=before)).complete


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

    measured = run(EXPERIMENT, out=tmp_path / "run", engine=Engine(), listener=Intruder())
    assert lines(measured) == lines(whole)
