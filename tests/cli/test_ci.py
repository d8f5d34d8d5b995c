"""`detcheck ci`: an experiment file, measured, judged and reported, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from junitparser import JUnitXml
from servers.faults import Faults
from servers.running import serve

from detcheck.rundir import load

FILE = """
[experiment]
prompts = ["Why?", "How?"]
completions = 40
batch-sizes = [1, 8]
max-new-tokens = 6

[target]
endpoints = ["{url}"]

[gate]
max-distinct = 1
"""
QUICK = {"quiet_s": 0.01, "answer_tokens": 6}


def write_file(url: str, text: str = FILE) -> None:
    Path("detcheck.toml").write_text(text.format(url=url), encoding="utf-8")


def test_a_sound_server_passes_and_everything_is_written(detcheck):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        files = ("--junit", "j.xml", "--sarif", "s.json", "--summary", "s.md")
        result = detcheck("ci", "-o", "out", *files)
    assert result.code == 0, result.err
    assert "PASS" in result.out
    assert "2 prompts: 2 pass" in result.out
    assert "settings: [experiment] and [target] and [gate] of" in result.err
    assert load("out/run").complete
    assert Path("out/run/report.html").exists()
    junit = JUnitXml.fromfile("j.xml")
    assert (junit.tests, junit.failures, junit.errors) == (2, 0, 0)
    assert [case.is_passed for suite in junit for case in suite] == [True, True]
    assert json.loads(Path("s.json").read_text())["runs"][0]["results"] == []
    assert "✅ pass" in Path("s.md").read_text(encoding="utf-8")


@pytest.mark.sweep
def test_the_gate_of_the_root_holds_an_experiment_below(detcheck, monkeypatch):
    Path("below").mkdir()
    Path("detcheck.toml").write_text('[gate]\nmodel = "another"\n', encoding="utf-8")
    monkeypatch.chdir("below")
    with serve(Faults(**QUICK)) as served:
        write_file(served.url, FILE.partition("[gate]")[0])
        result = detcheck("ci", "-o", "out")
    assert result.code == 3, result.err
    assert 'not "another"' in result.out
    assert "settings: [experiment] and [target] of" in result.err
    assert "settings: [gate] of" in result.err


def test_a_planted_difference_is_1_and_a_result_for_each_prompt(detcheck, monkeypatch, tmp_path):
    summary = tmp_path / "job.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    with serve(Faults(**QUICK, flip_at=3)) as served:
        write_file(served.url, FILE.replace('["Why?", "How?"]', '[\n"Why?",\n"How?"]'))
        result = detcheck("ci", "-o", "out", "--sarif", "s.json")
    assert result.code == 1
    (run,) = json.loads(Path("s.json").read_text())["runs"]
    failed = [found for found in run["results"] if found["level"] == "error"]
    assert len(failed) == 2
    for line, found in enumerate(failed, start=4):
        assert run["tool"]["driver"]["rules"][found["ruleIndex"]]["id"] == found["ruleId"]
        (place,) = found["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "detcheck.toml"
        assert place["physicalLocation"]["region"]["startLine"] == line
    assert "❌ fail" in summary.read_text(encoding="utf-8")


def test_inconclusive_is_3_unless_it_is_allowed(detcheck):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url, FILE.replace("completions = 40", "completions = 9"))
        assert detcheck("ci", "-o", "one").code == 3
        assert detcheck("ci", "-o", "two", "--allow-inconclusive").code == 0


@pytest.mark.sweep
def test_a_cancelled_job_goes_on(detcheck, monkeypatch):
    from detcheck.rundir import RunWriter

    real, committed = RunWriter.append_trial, []

    def cancelled(self, *args, **options):
        committed.append(real(self, *args, **options))
        if len(committed) == 5:
            raise KeyboardInterrupt

    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        with monkeypatch.context() as patch:
            patch.setattr(RunWriter, "append_trial", cancelled)
            assert detcheck("ci", "-o", "out").code == 3
        assert not load("out/run").complete
        assert detcheck("ci", "-o", "out").code == 0
        again = detcheck("ci", "-o", "out")
    assert (again.code, "holds a finished run already" in again.err) == (2, True)


@pytest.mark.sweep
def test_a_budget_that_ends_too_early_is_inconclusive_and_goes_on(detcheck):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        short = detcheck("ci", "-o", "out", "--budget", "0.001s", "--json")
        verdict = json.loads(short.out)
        assert (short.code, verdict["verdict"]) == (3, "inconclusive")
        (reason,) = [f["reason"] for f in verdict["findings"] if f["rule"] == "run-complete"]
        assert 'ended before 2 of 2 prompts had what a verdict needs: "Why?", "How?"' in reason
        assert detcheck("ci", "-o", "out", "--budget", "10m").code == 0
    assert not load("out/run").can_go_on


@pytest.mark.parametrize("text", ["soon", "10", "0m"])
def test_a_budget_is_a_duration(detcheck, text):
    write_file("http://localhost:9/v1")
    assert "--budget must be" in detcheck("ci", "--budget", text).err.splitlines()[-1]
    assert "--budget must be" in detcheck("run", "--budget", text).err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "There is no experiment file: write one with"),
        ("[gate]\nmax-distinct = 1\n", "There is no experiment file"),
        ("[experiment]\ncompletion = 3\n", "did you mean 'completions'?"),
        ("[experiment]\ncompletions = 'many'\n", "expected a whole number"),
        (
            '[target]\nengine = "static"\nendpoints = ["http://h/v1"]\n',
            "Two targets are named: `endpoints`",
        ),
        ("[gate]\nmax-distinct = 0\n[experiment]\ncompletions = 40\n", "must be at least 1"),
    ],
)
def test_a_bad_file_is_one_sentence(detcheck, text, words):
    if text is not None:
        Path("detcheck.toml").write_text(text, encoding="utf-8")
    result = detcheck("ci")
    assert result.code == 2
    assert words in result.err.splitlines()[-1]
    assert not Path("results").exists()


@pytest.mark.sweep
def test_a_summary_is_written_with_its_folders_or_refused_in_one_sentence(detcheck):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        assert detcheck("ci", "-o", "one", "--summary", "new/folder/s.md").code == 0
        refused = detcheck("ci", "-o", "two", "--summary", "detcheck.toml/s.md")
    assert "✅ pass" in Path("new/folder/s.md").read_text(encoding="utf-8")
    assert refused.code == 2
    assert "detcheck.toml/s.md cannot be written" in refused.err.splitlines()[-1]
    assert not Path("two").exists(), "a wrong path costs no measurement"


@pytest.mark.sweep
def test_a_finished_run_is_replaced_only_if_that_is_asked_for(detcheck):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        first = detcheck("ci", "-o", "out")
        assert "report: out/run/report.html" in first.err
        before = load("out/run").run_id
        again = detcheck("ci", "-o", "out")
        assert (again.code, load("out/run").run_id) == (2, before)
        assert "replace it by --fresh" in again.err.splitlines()[-1]
        assert detcheck("ci", "-o", "out", "--fresh").code == 0
    assert load("out/run").run_id != before


@pytest.mark.sweep
def test_a_job_that_was_cancelled_before_its_verdict_is_judged_without_a_server(detcheck):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        assert detcheck("ci", "-o", "out").code == 0
    Path("out/run/report.html").unlink()
    assert detcheck("ci", "-o", "out").code == 0
    write_file(served.url, FILE.replace("max-new-tokens = 6", "max-new-tokens = 5"))
    Path("out/run/report.html").unlink()
    assert "holds a finished run already" in detcheck("ci", "-o", "out").err


@pytest.mark.sweep
def test_a_server_that_went_away_is_inconclusive_and_says_how_to_go_on(detcheck):
    with serve(Faults(**QUICK, status=503, failures=None, only="How?")) as served:
        write_file(served.url)
        first = detcheck("ci", "-o", "out")
        assert first.code == 3
        again = detcheck("ci", "-o", "out")
    assert again.code == 3, again.err
    assert "holds a finished run" not in again.err


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("kernels = 'batch-invariant'", "only as-served: run it with them, or choose others by `k"),
        ("control = 'nowhere'", "There is no run directory"),
        ("min-comparisons = 3", "`min-comparisons` must be at least 20"),
    ],
)
def test_a_gate_that_cannot_judge_costs_no_measurement(detcheck, gate, words):
    write_file("http://localhost:9/v1", FILE.replace("[gate]", f"[gate]\n{gate}"))
    refused = detcheck("ci", "-o", "out")
    assert (refused.code, words in refused.err.splitlines()[-1]) == (2, True), refused.err
    assert not Path("out").exists()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("max-new-tokens = 6", "max-new-tokens = 5", "its token limit is 6, the run's is 5"),
        ('"Why?", "How?"', '"When?"', "The baseline has none of the run's prompts"),
    ],
)
def test_a_baseline_of_another_question_costs_no_measurement(detcheck, before, after, words):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url)
        assert detcheck("ci", "-o", "one").code == 0
        assert detcheck("baseline", "update", "one/run", "-o", "accepted.json").code == 0
    assert before in FILE
    write_file(served.url, FILE.replace(before, after))
    refused = detcheck("ci", "-o", "two", "--baseline", "accepted.json")
    assert (refused.code, words in refused.err) == (2, True), refused.err
    assert not Path("two").exists()


@pytest.mark.parametrize("text", [None, "{}", '{"detcheck_baseline": 9}'])
def test_a_wrong_baseline_costs_no_measurement(detcheck, text):
    if text is not None:
        Path("accepted.json").write_text(text, encoding="utf-8")
    write_file("http://localhost:9/v1")
    result = detcheck("ci", "--baseline", "accepted.json")
    assert (result.code, "accepted.json" in result.err.splitlines()[-1]) == (2, True)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("max-answer-flips = 0", "To judge answers, give a parser by `answer`"),
        ("answer = 'number'\nmax-accuracy-spread = 1", "`max-accuracy-spread` needs right answers"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused_before_anything_is_asked(detcheck, gate, words):
    with serve(Faults(**QUICK)) as served:
        write_file(served.url, FILE.replace("[gate]", f"[gate]\n{gate}"))
        refused = detcheck("ci", "-o", "out")
    assert (refused.code, words in refused.err) == (2, True)
    assert not Path("out").exists()
