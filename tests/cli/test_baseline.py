"""`detcheck baseline update`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from gate.runs import write

from detcheck.kernels.settings import STOCK


def test_a_run_is_accepted_and_held(detcheck, good, bad, tmp_path):
    result = detcheck("baseline", "update", good, "-o", "accepted.json")
    assert result.code == 0
    assert "new, 1 answer accepted" in result.out
    assert result.out.endswith("1 prompt changed, 0 as before\n")
    assert "hold a run to it: detcheck gate RUN --baseline accepted.json" in result.err
    again = write(tmp_path / "again")
    assert detcheck("gate", again, "--baseline", "accepted.json").code == 0
    changed = detcheck("gate", bad, "--baseline", "accepted.json")
    assert changed.code == 1
    assert "they diverge at token 5" in changed.out


def test_a_change_is_shown_in_words_before_it_is_accepted(detcheck, good, bad):
    detcheck("baseline", "update", good)
    before = Path("detcheck-baseline.json").read_bytes()
    result = detcheck("baseline", "update", bad, "--dry-run")
    assert "they diverge at token 5, after" in result.out
    assert "nothing was written" in result.err
    assert Path("detcheck-baseline.json").read_bytes() == before
    assert detcheck("baseline", "update", bad, "--add").code == 0
    assert detcheck("gate", good, "--baseline", "detcheck-baseline.json").code == 0


def test_the_file_of_the_settings_is_the_default(detcheck, good):
    Path("detcheck.toml").write_text("[gate]\nbaseline = 'kept/accepted.json'\n", encoding="utf-8")
    result = detcheck("baseline", "update", good, "--json")
    assert json.loads(result.out)["written"] is True
    assert Path("kept/accepted.json").exists()
    again = detcheck("baseline", "update", good)
    assert again.out == "0 prompts changed, 1 as before\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["drop", "GOOD"], "Unknown action 'drop'"),
        (["update", "nowhere"], "no run directory nowhere"),
        (["update", "GOOD", "-o", "."], "is a folder"),
        (["update", "GOOD", "-o", "other.json"], "is no baseline"),
        (["update", "GOOD", "-k", "batch-invariant:matmul"], "no batch-invariant:matmul kernels"),
    ],
)
def test_what_cannot_be_accepted_is_a_usage_error(detcheck, good, args, words):
    Path("other.json").write_text("{}", encoding="utf-8")
    result = detcheck("baseline", *(str(good) if arg == "GOOD" else arg for arg in args))
    assert result.code == 2
    assert words in result.only_sentence


def test_an_unfinished_run_is_not_accepted(detcheck, tmp_path):
    run = write(tmp_path / "run", stop_after=2)
    result = detcheck("baseline", "update", run)
    assert result.code == 2
    assert "The run is no evidence of answers to accept: The run is not" in result.only_sentence
    assert "baseline" not in result.only_sentence.lower()
    assert not Path("detcheck-baseline.json").exists()


def test_a_baseline_of_another_model_is_not_a_difference(detcheck, good, tmp_path):
    other = write(tmp_path / "other", model="other")
    detcheck("baseline", "update", other)
    result = detcheck("gate", good, "--baseline", "detcheck-baseline.json")
    assert result.code == 2
    assert "The baseline was asked something else: its model is" in result.only_sentence


def test_several_accepted_answers_are_visible(detcheck, good):
    detcheck("baseline", "update", good, "-k", STOCK)
    document = json.loads(Path("detcheck-baseline.json").read_text(encoding="utf-8"))
    (entry,) = document["prompts"]
    assert [answer["completions"] for answer in entry["answers"]] == [4, 44]
    assert all(answer["preview"] for answer in entry["answers"])


def review(detcheck, run, monkeypatch, replies: str):
    """Run `baseline update --review` with these replies typed."""
    monkeypatch.setattr("sys.stdin", io.StringIO(replies))
    return detcheck("baseline", "update", run, "--review")


def test_a_review_asks_before_a_change_is_accepted(detcheck, good, bad, monkeypatch):
    detcheck("baseline", "update", good)
    file = Path("detcheck-baseline.json")
    before = file.read_bytes()
    refused = review(detcheck, bad, monkeypatch, "n\n")
    assert (refused.code, file.read_bytes()) == (0, before)
    assert "they diverge at token 5, after" in refused.out
    assert "0 prompts changed, 0 as before, 1 refused" in refused.out
    assert "nothing was written: no change was accepted" in refused.err
    accepted = review(detcheck, bad, monkeypatch, "y\n")
    assert (accepted.code, file.read_bytes() != before) == (0, True)
    assert accepted.out.count("they diverge at token 5") == 1
    assert review(detcheck, bad, monkeypatch, "").code == 0, "nothing changes, so nothing is asked"


def test_a_review_without_a_terminal_writes_nothing(detcheck, good, monkeypatch):
    result = review(detcheck, good, monkeypatch, "")
    assert (result.code, Path("detcheck-baseline.json").exists()) == (2, False)
    assert "--review needs an answer to each change" in result.err.splitlines()[-1]
    assert detcheck("baseline", "update", good, "--review", "--json").code == 2
