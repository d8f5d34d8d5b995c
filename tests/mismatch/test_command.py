"""`detcheck mismatch` and `detcheck gate` on its folder, with a tiny model on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detcheck.cli.app import run_program

SHORT = ("-n", "3", "-b", "3", "--max-new-tokens", "10", "-p", "Why?", "-p", "Who asks?")
KEYS = {
    "kernels", "link", "trainer_layout", "trainer_dtype", "tokens", "sequences", "k1", "k2", "k3",
    "mean_abs", "max_abs", "p99_abs", "mult_prob_error", "bitwise_tokens", "bitwise_sequences",
    "ratio_outside", "ess", "chi2_token", "chi2_sequence", "pearson", "intervals",
}  # fmt: skip


def call(*args: str | Path) -> int:
    return run_program([str(arg) for arg in args])


@pytest.fixture(scope="module")
def measured(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `detcheck mismatch` wrote."""
    folder = tmp_path_factory.mktemp("measured") / "mismatch"
    assert call("mismatch", saved, *SHORT, "-k", "stock,fully-invariant", "-o", folder) == 0
    return folder


def test_rows_have_the_documented_keys(measured: Path) -> None:
    report = json.loads((measured / "mismatch.json").read_text())
    assert all(set(row) == KEYS for row in report["rows"])
    links = {row["link"] for row in report["rows"]}
    assert links == {"whole", "recorded-decode", "decode-prefill", "prefill-layout"}
    wholes = [row for row in report["rows"] if row["link"] == "whole"]
    assert {row["trainer_layout"] for row in wholes} == {"single", "padded", "packed"}
    full = [row for row in report["rows"] if row["kernels"] == "fully-invariant"]
    assert {row["bitwise_tokens"] for row in full} == {1.0}
    assert report["headline"].startswith("stock: ")


def test_the_gate_judges_the_folder(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = ("gate", measured, "--bitwise", "--min-tokens")
    assert call(*judge, "20") == 0
    assert "PASS  fully-invariant" in capsys.readouterr().out
    assert call(*judge, "2000") == 3
    assert "fewer than 2000" in capsys.readouterr().out
    assert call("gate", measured) == 2
    assert "give --max-k3, --bitwise or both" in capsys.readouterr().err


@pytest.mark.sweep
def test_its_rollouts_are_scored_alone(
    measured: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = measured / "rollouts-fully-invariant.jsonl"
    options = ("-k", "fully-invariant", "--bitwise", "--min-tokens", "20", "--json")
    assert call("mismatch", saved, "--rollouts", rollouts, *options, "-o", tmp_path / "a") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "pass"
    assert {row["bitwise_tokens"] for row in document["rows"]} == {1.0}


@pytest.mark.sweep
def test_a_wrong_record_fails(
    measured: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The twin: the same file, each log-probability moved to the next token."""
    rows = [
        json.loads(line)
        for line in (measured / "rollouts-fully-invariant.jsonl").read_text().splitlines()
    ]
    for row in rows:
        row["logprobs"] = [row["logprobs"][-1], *row["logprobs"][:-1]]
    file = tmp_path / "moved.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    options = ("-k", "fully-invariant", "--max-k3", "0.001", "-o", tmp_path / "b")
    assert call("mismatch", saved, "--rollouts", file, *options) == 1
    assert "the record is off by one" in capsys.readouterr().out


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "layout": (("--trainer-layout", "ragged"), "Unknown trainer layout 'ragged'"),
    "two sizes": (("-b", "1,8"), "give one --batch-sizes"),
    "no completions": (("-n", "0"), "--completions must be at least 1"),
    "no such file": (("--rollouts", "gone.jsonl"), "There is no rollouts file gone.jsonl"),
    "a seed beside a file": (("--rollouts", "f", "--seed", "4"), "leave prompts, sampling"),
    "a key beside a file": (("--rollouts", "f", "--timeout", "4"), "leave prompts, sampling"),
    "no limit": (("--min-tokens", "4"), "--min-tokens is for a verdict: give --max-k3"),
    "both": (("--rollouts", "gone.jsonl", "-p", "Why?"), "leave prompts, sampling"),
    "limit": (("--max-k3", "-1"), "--max-k3 must be 0 or more"),
    "key": (("--api-key-env", "KEY"), "are for servers"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args, message = BAD[name]
    assert call("mismatch", *args) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_folder_is_not_written_twice(
    measured: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("mismatch", saved, "-o", measured) == 2
    assert "give another --out" in capsys.readouterr().err


def test_a_file_is_refused_before_anything_is_computed(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert call("mismatch", saved, "-o", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "is a file: give another --out" in err
    assert "loading" not in err


@pytest.mark.parametrize(
    "option", [("--max-distinct", "1"), ("--junit", "x.xml"), ("--github-summary",)]
)
def test_the_options_of_runs_are_not_for_a_mismatch(
    measured: Path, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("gate", measured, "--bitwise", *option) == 2
    assert "leave the other options out" in capsys.readouterr().err


def test_the_limits_of_a_mismatch_are_not_for_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("gate", tmp_path, "--bitwise") == 2
    assert "judge a folder of `detcheck mismatch`" in capsys.readouterr().err


def unreadable() -> dict[str, Any]:
    return {"cut": "{", "newer": '{"rows": [], "headline": "", "schema": 99}'}


@pytest.mark.parametrize(("text", "message"), [*zip(
    unreadable().values(), ("cannot be read", "has schema 99"), strict=True
)])  # fmt: skip
def test_a_damaged_folder_is_named(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mismatch.json").write_text(text)
    assert call("gate", tmp_path, "--bitwise") == 2
    assert message in capsys.readouterr().err


@pytest.mark.sweep
def test_a_single_token_is_measured_and_judged(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its correlation is not defined: null in the file."""
    one = ("-n", "1", "--max-new-tokens", "1", "-k", "fully-invariant", "-o", tmp_path / "one")
    assert call("mismatch", saved, *one) == 0
    capsys.readouterr()
    assert call("gate", tmp_path / "one", "--bitwise") == 3
    assert "1 token was compared" in capsys.readouterr().out
