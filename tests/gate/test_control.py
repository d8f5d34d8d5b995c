"""A control from another run: it counts if it had the same load, and is refused if it had not."""

from __future__ import annotations

import pytest
from sweeps import few

from detcheck.analysis.evidence import INCONCLUSIVE
from detcheck.engines.scripted import ScriptedEngine
from detcheck.errors import UsageError
from detcheck.evidence import ModelIdentity
from detcheck.gate import PASS, GateOptions, judge
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import analysed

ALONE = (BATCH_INVARIANT,)


@pytest.fixture
def run(tmp_path):
    """A run of batch-invariant kernels alone."""
    return analysed(tmp_path / "run", kernels=ALONE)


def judged(run, control, **options):
    return judge(run, GateOptions(kernels=BATCH_INVARIANT, **options), control=control)


def test_a_control_of_another_run_is_a_control(tmp_path, run):
    assert judged(run, None, require_control=True).value == INCONCLUSIVE
    verdict = judged(run, analysed(tmp_path / "stock", kernels=(STOCK,)), require_control=True)
    assert verdict.value == PASS
    assert any("The control (stock) gave 1 distinct answer" in r for r in verdict.reasons)
    assert verdict.judged.control == "stock"
    assert dict(verdict.judged.facts())["control"] == "stock of run stock"


def test_a_dead_control_of_another_run_is_inconclusive(tmp_path, run):
    control = analysed(tmp_path / "stock", kernels=(STOCK,), alive=False)
    verdict = judged(run, control)
    assert verdict.value == INCONCLUSIVE
    assert "The control shows nothing: stock gave one answer" in verdict.reasons[0]


def test_a_control_of_another_run_revives_a_run_whose_own_is_dead(tmp_path):
    run = analysed(tmp_path / "run", alive=False)
    assert judged(run, None).value == INCONCLUSIVE
    assert judged(run, analysed(tmp_path / "other", kernels=(STOCK,))).value == PASS


def test_prompts_that_the_control_has_not_asked_have_none(tmp_path):
    run = analysed(tmp_path / "run", kernels=ALONE, prompts=("One?", "Two?"))
    control = analysed(tmp_path / "stock", kernels=(STOCK,), prompts=("One?",))
    verdict = judged(run, control, require_control=True)
    assert [judged.value for judged in verdict.groups] == [PASS, INCONCLUSIVE]


@few(
    ("change", "words"),
    [
        ({"kernels": ALONE}, "has no stock kernels, only batch-invariant"),
        ({"prompts": ("Other?",)}, "asks other prompts"),
        ({"model": "other"}, 'another model .*"other"'),
        ({"max_new_tokens": 24}, "another max new tokens .24."),
        ({"traffic": "mixed"}, "another traffic"),
        ({"engine": "static"}, 'another engine ."static".'),
        ({"batch_sizes": (1, 4, 16)}, "larger batches .16. than the run .8."),
        ({"script": ScriptedEngine(observed_share=0.5)}, "no evidence"),
        ({"engine": "scripted"}, "no evidence: The answers were planted"),
        ({"stop_after": 1}, "no evidence: The run is not complete"),
    ],
    every=3,
)
def test_a_control_of_another_load_is_refused(tmp_path, run, change, words):
    control = analysed(tmp_path / "control", **({"kernels": (STOCK,)} | change))
    with pytest.raises(UsageError, match=words):
        judged(run, control)


def test_the_run_itself_is_no_other_run(run):
    with pytest.raises(UsageError, match="is the run itself"):
        judged(run, run)


def of_model(path, **identity):
    return analysed(path, identity=ModelIdentity(**identity))


KNOWN = {
    "dtype": "bfloat16",
    "weights_digest": "sha256:a",
    "config_digest": "sha256:c",
    "revision": "r1",
}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dtype": "float32"}, "its dtype is float32, the run's is bfloat16"),
        ({"weights_digest": "sha256:b"}, "its weights digest is sha256:b"),
        ({"revision": "r2"}, "its revision is r2"),
        ({"config_digest": "sha256:d"}, "its config digest is sha256:d"),
        ({"prompt_digests": ("sha256:q",)}, "1 prompt became other token ids"),
    ],
)
def test_a_control_of_another_model_is_refused(tmp_path, other, words):
    run = of_model(tmp_path / "run", prompt_digests=("sha256:p",), **KNOWN)
    with pytest.raises(UsageError, match=words):
        judged(run, of_model(tmp_path / "control", **KNOWN | other))


def test_a_control_of_which_less_is_known_is_a_control(tmp_path):
    run = of_model(tmp_path / "run", prompt_digests=("sha256:p",), **KNOWN)
    assert judged(run, of_model(tmp_path / "one", dtype="bfloat16")).value == PASS
    same = of_model(tmp_path / "two", prompt_digests=("sha256:p",), **KNOWN)
    assert judged(run, same).value == PASS


@pytest.mark.parametrize("asked", [{"model": "/elsewhere/m"}, {"dtype": "bfloat16"}])
def test_the_same_weights_under_another_name_are_the_same_model(tmp_path, asked):
    loaded = ModelIdentity(**KNOWN)
    run = analysed(tmp_path / "run", identity=loaded)
    assert judged(run, analysed(tmp_path / "one", identity=loaded, **asked)).value == PASS
    with pytest.raises(UsageError, match="another"):
        judged(run, analysed(tmp_path / "two", **asked))
