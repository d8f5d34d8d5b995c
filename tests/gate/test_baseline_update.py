"""`baseline update`: which answers a baseline accepts after it, and what it shows of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import few

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.evidence import ModelIdentity
from detcheck.gate import PASS, GateOptions, baseline_of, judge
from detcheck.gate.accept import accept
from detcheck.gate.changes import start_of_word
from detcheck.kernels.settings import BATCH_INVARIANT

from .runs import SeededScript, analysed

KERNELS = (BATCH_INVARIANT,)
OTHER = ScriptedEngine([Planted(5, 3, min_batch_size=1, kernels=BATCH_INVARIANT)])
"""Answers with another word at token 5, whatever the batch size."""


def test_new_answers_take_the_place_of_those_accepted(tmp_path, good):
    first = accept(good, KERNELS)
    assert (len(first.changes), first.same, first.kept) == (1, 0, 0)
    again = accept(analysed(tmp_path / "again"), KERNELS, first.baseline)
    assert (again.changes, again.same) == ((), 1)
    other = analysed(tmp_path / "other", OTHER)
    second = accept(other, KERNELS, first.baseline)
    assert "1 new answer: they diverge at token 5" in second.changes[0]
    assert "1 answer no longer accepted" in second.changes[0]
    options = GateOptions(baseline=Path("given"))
    assert judge(good, options, baseline=second.baseline).value == FAIL


def test_answers_may_be_added_to_those_accepted(tmp_path, good):
    first = accept(good, KERNELS).baseline
    other = analysed(tmp_path / "other", OTHER)
    both = accept(other, KERNELS, first, add=True).baseline
    assert len(both.prompts[0].answers) == 2
    verdicts = [
        judge(analysed(tmp_path / name, script), GateOptions(baseline=Path("x")), baseline=both)
        for name, script in (("a", None), ("b", OTHER))
    ]
    assert [verdict.value for verdict in verdicts] == [PASS, PASS]
    assert any("1 of its 2 did not come back" in reason for reason in verdicts[0].reasons)


def test_prompts_that_were_not_asked_stay(tmp_path):
    first = accept(analysed(tmp_path / "first", prompts=("One?", "Two?")), KERNELS).baseline
    second = accept(analysed(tmp_path / "second", prompts=("Two?", "Three?")), KERNELS, first)
    assert [entry.prompt for entry in second.baseline.prompts] == ["One?", "Two?", "Three?"]
    assert (second.same, second.kept) == (1, 1)
    assert "Three?" in second.changes[0]


def test_prompts_are_counted_and_not_their_seeds(tmp_path):
    """Three seeds of two prompts are six entries, but two prompts."""
    asked = {"prompts": ("One?", "Two?"), "temperature": 0.8, "seeds": (1, 2, 3)}
    first = accept(analysed(tmp_path / "first", SeededScript(), **asked), KERNELS)
    assert (len(first.changes), first.changed, first.same, first.kept) == (6, 2, 0, 0)
    again = analysed(tmp_path / "again", SeededScript(), **(asked | {"prompts": ("Two?",)}))
    held = accept(again, KERNELS, first.baseline)
    assert (held.changed, held.same, held.kept) == (0, 1, 1)
    moved = analysed(tmp_path / "moved", SeededScript(shift=1), **asked)
    answers = iter([True] * 5 + [False])
    reviewed = accept(moved, KERNELS, first.baseline, review=lambda change: next(answers))
    assert (reviewed.changed, reviewed.same, reviewed.refused) == (2, 0, 1)


def test_a_baseline_of_another_model_is_not_brought_up_to_date(tmp_path, good):
    first = accept(analysed(tmp_path / "other", model="other"), KERNELS).baseline
    with pytest.raises(UsageError, match="something else: its model"):
        accept(good, KERNELS, first)


@few(
    ("before", "after", "value"),
    [
        ({"chat_template_digest": "a"}, {"chat_template_digest": "b"}, INCONCLUSIVE),
        ({"tokenizer_digest": "a"}, {"tokenizer_digest": "b"}, INCONCLUSIVE),
        ({"tokenizer_digest": "a"}, {"tokenizer_digest": "a"}, PASS),
        ({"tokenizer_digest": "a"}, {}, PASS),
        ({"prompt_digests": ("p",)}, {"prompt_digests": ("q",)}, INCONCLUSIVE),
        # The prompt became the same token ids all the same: said, and held.
        (
            {"tokenizer_digest": "a", "prompt_digests": ("p",)},
            {"tokenizer_digest": "b", "prompt_digests": ("p",)},
            PASS,
        ),
    ],
)
def test_a_baseline_holds_the_tokenizer_and_the_chat_template(tmp_path, before, after, value):
    old = analysed(tmp_path / "old", identity=ModelIdentity(**before))
    new = analysed(tmp_path / "new", identity=ModelIdentity(**after))
    verdict = judge(new, baseline=baseline_of(old, (BATCH_INVARIANT,)))
    assert verdict.value == value, verdict.reasons
    said = any("tokenizer is another one" in reason for reason in verdict.reasons)
    assert said == ({"a", "b"} == {before.get("tokenizer_digest"), after.get("tokenizer_digest")})


@pytest.mark.parametrize(
    ("text", "position", "start"),
    [
        ("that old along", 10, 9),  # the accepted answer has "again"
        ("that old along", 9, 9),
        ("oldest", 3, 0 + 3),  # the text begins with the word: all of it may be cut off
        ("東京" * 20, 35, 35),
        ("", 0, 0),
    ],
)
def test_a_difference_is_shown_from_the_beginning_of_its_word(text, position, start) -> None:
    assert start_of_word(text, position) == start
