"""The baseline's file: read as it was written, harmless, and strict."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest

from detcheck.errors import UsageError
from detcheck.gate import read_baseline
from detcheck.gate.accept import accept
from detcheck.gate.baseline import baseline_text, write_baseline
from detcheck.kernels.settings import BATCH_INVARIANT

from .runs import analysed

KERNELS = (BATCH_INVARIANT,)


def test_a_file_is_read_as_it_was_written(tmp_path, good):
    baseline = accept(good, KERNELS).baseline
    write_baseline(baseline, tmp_path / "a" / "baseline.json")
    assert read_baseline(tmp_path / "a" / "baseline.json") == baseline
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["baseline.json"]


def test_a_file_is_small_and_holds_no_path_of_the_machine(good):
    text = baseline_text(accept(good, KERNELS).baseline)
    assert len(text) < 1500
    assert str(good.run.path) not in text
    assert text.count('"preview": ') == 1


def test_hostile_answers_leave_the_file_harmless_and_whole(tmp_path):
    hostile = 'a\u202eb\x1b[31m\ud800"\\\n\U000e0001é日本'
    old = analysed(
        tmp_path / "old",
        prompts=("Say \u202e日本?",),
        change=lambda answer: dataclasses.replace(
            answer, text=hostile, token_ids=None, token_ends=None
        ),
    )
    baseline = accept(old, KERNELS).baseline
    write_baseline(baseline, tmp_path / "baseline.json")
    data = (tmp_path / "baseline.json").read_text(encoding="utf-8")
    assert not {"\u202e", "\x1b", "\U000e0001"} & set(data)
    assert "日本" in data
    assert read_baseline(tmp_path / "baseline.json") == baseline
    assert baseline.prompts[0].answers[0].preview == hostile


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "is no baseline"),
        ("{}", "is no baseline"),
        ('{"detcheck_baseline": 99}', "newer than this detcheck reads"),
        ('{"detcheck_baseline": 1}', "is damaged"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path, text, words):
    (tmp_path / "baseline.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_baseline(tmp_path / "baseline.json")


def test_an_unknown_field_is_refused(tmp_path, good):
    document = msgspec.to_builtins(accept(good, KERNELS).baseline) | {"more": 1}
    (tmp_path / "baseline.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match="unknown field `more`"):
        read_baseline(tmp_path / "baseline.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="There is no baseline"):
        read_baseline(tmp_path / "nowhere.json")


def without_answers(document):
    document["prompts"][0]["answers"] = []


def without_prompts(document):
    document["prompts"] = []


def with_a_prompt_twice(document):
    document["prompts"] *= 2


def of_no_format(document):
    document["detcheck_baseline"] = 0


def of_a_format_that_is_true(document):
    document["detcheck_baseline"] = True


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_answers, "is damaged"),
        (without_prompts, "is damaged"),
        (with_a_prompt_twice, "it has a prompt twice"),
        (of_no_format, "is no baseline"),
        (of_a_format_that_is_true, "is no baseline"),
    ],
)
def test_a_file_that_holds_nothing_is_refused(tmp_path, good, damage, words):
    document = msgspec.to_builtins(accept(good, KERNELS).baseline)
    damage(document)
    (tmp_path / "baseline.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_baseline(tmp_path / "baseline.json")
