"""JUnit and GitHub: valid whatever the model said, and never green by accident."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import pytest
from junitparser import Error, Failure, JUnitXml, TestCase

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.gate import judge
from detcheck.gate.github import append_summary, summary_markdown, summary_path, write_summary
from detcheck.gate.junit import junit_xml, write_junit
from detcheck.kernels.settings import BATCH_INVARIANT

from .runs import analysed

HOSTILE = (
    "<script>alert(1)</script> | `x` *b* @octocat http://x.org \x1b[31m\x00\ufffe\u202e&\n# no"
)


@pytest.fixture
def verdict_on(tmp_path):
    def judged(engine=None, **options):
        return judge(analysed(tmp_path / "run", engine, **options))

    return judged


@pytest.fixture
def hostile(verdict_on):
    engine = ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)])
    return verdict_on(
        engine,
        prompts=(HOSTILE,),
        change=lambda answer: dataclasses.replace(
            answer,
            text=HOSTILE * 3,
            token_ends=tuple(range(9, 9 * len(answer.token_ids) + 1, 9)),
        ),
    )


def suite_of(verdict) -> ElementTree.Element:
    suite = ElementTree.fromstring(junit_xml(verdict)).find("testsuite")
    assert suite is not None
    return suite


def test_a_pass_is_a_plain_test_case(verdict_on):
    suite = suite_of(verdict_on())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")
    assert suite.find("testcase/failure") is None
    assert "0 of 32 comparisons differed" in suite.findtext("testcase/system-out")


def test_a_failure_is_a_failure(verdict_on):
    suite = suite_of(verdict_on(ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)])))
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert "2 distinct answers" in suite.find("testcase/failure").get("message")


def test_inconclusive_is_an_error_and_not_skipped(verdict_on):
    suite = suite_of(verdict_on(ScriptedEngine(observed_share=0.5)))
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("0", "1", "0")
    assert suite.find("testcase/error").get("type") == "inconclusive"


@pytest.mark.parametrize(
    ("engine", "results"),
    [
        (ScriptedEngine(), []),
        (ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)]), [Failure]),
        (ScriptedEngine(observed_share=0.5), [Error]),
    ],
)
def test_a_parser_of_the_format_reads_each_prompts_verdict(
    verdict_on, tmp_path, engine, results
) -> None:
    """A CI system goes by the elements: a failure and an error are red, and nothing is skipped."""
    prompts = ("Why?", HOSTILE)
    verdict = verdict_on(engine, prompts=prompts)
    write_junit(verdict, tmp_path / "junit.xml")
    document = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    (suite,) = document
    cases = list(suite.iterchildren(TestCase))
    assert [[type(result) for result in case.result] for case in cases] == [results] * len(prompts)
    assert '"Why?"' in cases[0].name
    assert all(case.is_passed == (verdict.value == "pass") for case in cases)
    for counted in (document, suite):
        counts = (counted.tests, counted.failures, counted.errors, counted.skipped)
        assert counts == (2, 2 * results.count(Failure), 2 * results.count(Error), 0)
    assert {each.name for each in suite.properties()} > {"model", "kernels", "run"}


def test_the_properties_say_what_was_judged(verdict_on):
    suite = suite_of(verdict_on(model="org/model"))
    found = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert found["model"] == "org/model, revision not recorded, weights not recorded"
    assert found["kernels"] == "batch-invariant, judged by bits"
    assert found["asked"].startswith("1 prompt, 48 completions each of at most 12 tokens")
    assert found["observed"].startswith("batches of up to 8 of 8 asked")
    assert found["observed"].endswith("(sizes 1, 4, 8)")
    assert found["compared"].startswith("32 comparisons under a batch larger than one")
    assert "8.9 %" in found["compared"]
    assert found["run"].startswith("run, finished 2026-01-01T00:01:00Z")
    assert (found["control"], found["baseline"]) == ("stock", "none")


def test_the_summary_says_what_was_judged(verdict_on):
    text = summary_markdown(verdict_on(model="org/model"))
    assert "\n| model | org/model, revision not recorded" in text
    assert "\n| compared | 32 comparisons" in text
    assert "\n1 prompt: 1 pass.\n" in text


def listed(verdict) -> list[str]:
    """The reasons that the Markdown summary lists."""
    return [line for line in summary_markdown(verdict).splitlines() if line.startswith("- ")]


def test_the_summary_folds_a_note_that_every_prompt_has(verdict_on):
    reasons = listed(verdict_on(prompts=tuple(f"Question {n}?" for n in range(8))))
    assert len([line for line in reasons if "comparisons differed" in line]) == 3
    assert "- … 5 more of count" in reasons


def test_the_summary_lists_every_prompt_that_changed(verdict_on):
    engine = ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)])
    prompts = tuple(f"Question {n}?" for n in range(8))
    reasons = "\n".join(listed(verdict_on(engine, prompts=prompts)))
    assert all(f"{prompt}" in reasons for prompt in prompts)


def test_a_test_case_a_prompt(verdict_on):
    suite = suite_of(verdict_on(prompts=("One?", "Two?", "Three?")))
    assert len(suite.findall("testcase")) == 3


def test_hostile_answers_leave_the_xml_valid(hostile):
    suite = suite_of(hostile)
    assert "<script>" in suite.find("testcase").get("name")
    assert not set("\x00\x1b\ufffe") & set(ElementTree.tostring(suite, encoding="unicode"))


def test_hostile_answers_are_only_text_in_markdown(hostile):
    text = summary_markdown(hostile)
    assert "@<!-- -->" in text, "parted, or somebody is mentioned"
    text = text.replace("@<!-- -->", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6, 3}
    for forbidden in ("<", "`", "*b*", "@", "http:", "\x1b", "\x00", "\u202e", "\n# no"):
        assert forbidden not in text


def test_the_file_is_written_with_its_folders(tmp_path, verdict_on):
    path = tmp_path / "a" / "b" / "junit.xml"
    write_junit(verdict_on(), path)
    assert ElementTree.parse(path).getroot().tag == "testsuites"


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path, verdict_on):
    verdict = verdict_on()
    for write in (write_junit, write_summary):
        with pytest.raises(UsageError, match="cannot be written"):
            write(verdict, tmp_path)


def test_the_summary_has_a_file_of_its_own(tmp_path, verdict_on):
    path = tmp_path / "pages" / "summary.md"
    write_summary(verdict_on(), path, "First op that differs: aten::mm.")
    assert path.read_text(encoding="utf-8").startswith("### detcheck: ✅ pass\n")


def test_the_summary_is_appended(tmp_path, verdict_on, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    append_summary(verdict_on(), summary_path())
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n### detcheck: ✅ pass\n")


def test_outside_of_github_the_summary_is_a_usage_error(monkeypatch, tmp_path, verdict_on):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    with pytest.raises(UsageError, match="GITHUB_STEP_SUMMARY"):
        summary_path()
    with pytest.raises(UsageError, match="cannot be written"):
        append_summary(verdict_on(), tmp_path)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "48 completions each of"),
        ({"temperature": 0.8, "seeds": (0, 1)}, "48 completions each of"),
        ({"prompts": ("One?", "Two?", "Three?")}, "48 completions each of"),
        (
            {"endpoints": ("http://one/v1", "http://two/v1"), "kernels": ("as-served",)},
            "48 completions at each of 2 places of",
        ),
    ],
)
def test_what_differs_is_counted_among_what_came_back(verdict_on, asked, words):
    """A verdict once said `32 of 24 completions`: places, seeds and prompts multiply them."""

    def broken(answer):
        if answer.observed_batch.rows_max < 8:
            return answer
        return dataclasses.replace(answer, token_ids=(99, *answer.token_ids[1:]))

    verdict = verdict_on(change=broken, **{"kernels": ("batch-invariant",)} | asked)
    facts = dict(verdict.judged.facts())
    returned = sum(judged.group.completions for judged in verdict.groups)
    assert verdict.judged.differing <= returned
    assert f"reference: {verdict.judged.differing} of {returned} completions" in facts["compared"]
    assert words in facts["asked"]
